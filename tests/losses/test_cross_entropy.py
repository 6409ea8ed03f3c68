"""Cross-entropy with prototypes in chunks equals it in one piece, and holds no more logits than it may."""

import pytest
import torch
import torch.nn.functional as F
from sizes import Sizes
from waves import wave

from omma.losses import distillation
from omma.ops.directions import lengths

N, K, D = 13, 8, 5


def inputs(dtype=torch.float64):
    """Features, prototypes, targets that do not sum to 1, rows in any order, weights."""
    features = wave(N, D, phase=0.1).to(dtype).requires_grad_()
    prototypes = wave(K, D, phase=0.7).to(dtype).requires_grad_()
    targets = wave(4, K, phase=1.3, scale=2.0).softmax(-1) * torch.tensor([[1.0], [2.0], [0.5], [0.0]])
    rows = torch.tensor([3, 0, 0, 2, 1, 1, 1, 3, 2, 0, 2, 1, 0])
    weights = wave(N, phase=0.2).abs()
    return features, prototypes, targets, rows, weights


def cross_entropy(features, prototypes, targets, rows, weights, temperature, values=1 << 24, **options):
    terms = [distillation.Term(features, targets, rows, weights)]
    return distillation.together(terms, prototypes, temperature, values=values, **options)[0]


def written_out(features, prototypes, targets, rows, weights, temperature):
    log = (features.double() @ prototypes.double().T / temperature).log_softmax(-1)
    return -(weights[:, None] * targets[rows] * log).sum()


@pytest.mark.parametrize("values", [1, K, 2 * K + 3, 5 * K, N * K, 1 << 24])
def test_any_chunk_gives_what_one_piece_gives(values):
    ours, theirs = inputs(), inputs()
    loss = cross_entropy(*ours, 0.1, values)
    reference = written_out(*theirs, 0.1)
    (3 * loss).backward()
    (3 * reference).backward()
    torch.testing.assert_close(loss, reference)
    for i in range(2):
        torch.testing.assert_close(ours[i].grad, theirs[i].grad)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_what_is_asked_for_gets_a_gradient(wanted):
    features, prototypes, *rest = inputs()
    features.requires_grad_(wanted[0])
    prototypes.requires_grad_(wanted[1])
    loss = cross_entropy(features, prototypes, *rest, 0.1, 3 * K)
    assert loss.requires_grad == any(wanted)
    twins = inputs()
    torch.testing.assert_close(loss, written_out(*twins, 0.1), check_dtype=False)
    if any(wanted):
        loss.backward()
        written_out(*twins, 0.1).backward()
        for ours, theirs, asked in zip((features, prototypes), twins[:2], wanted, strict=True):
            assert (ours.grad is not None) == asked
            if asked:
                torch.testing.assert_close(ours.grad, theirs.grad)


def test_numerical_gradient():
    features, prototypes, *rest = inputs()
    assert torch.autograd.gradcheck(
        lambda f, p: cross_entropy(f, p, *rest, 0.5, 3 * K), (features, prototypes)
    )


def test_nothing_to_compare_is_zero():
    features, prototypes, targets, rows, weights = inputs()
    features = features.detach()[:0].requires_grad_()
    loss = cross_entropy(features, prototypes, targets[:0], rows[:0], weights[:0], 0.1)
    loss.backward()
    assert loss == 0
    assert prototypes.grad.abs().max() == 0
    assert features.grad.shape == (0, D)


def test_no_more_logits_at_a_time_than_allowed():
    """640 features, 64 prototypes, 2,048 logits at a time; the features and their gradient have 1,920."""
    n, k, d, values = 640, 64, 3, 2048
    features, prototypes = wave(n, d).requires_grad_(), wave(k, d, phase=1.0).requires_grad_()
    targets, rows = wave(5, k).softmax(-1), torch.arange(n) % 5
    with Sizes() as sizes:
        loss = cross_entropy(features, prototypes, targets, rows, torch.ones(n), 0.1, values)
        loss.backward()
    assert sizes.largest == values
    assert sizes.products == 3 * n * k // values  # logits and two gradients for each of 20 chunks
    with Sizes() as whole:
        written_out(features, prototypes, targets, rows, torch.ones(n), 0.1)
    assert whole.largest == n * k  # the count does count


def test_bf16_is_summed_in_fp32():
    ours, theirs = inputs(torch.bfloat16), inputs()
    for i in range(2):  # the same rounded numbers
        theirs[i].data.copy_(ours[i].data)
    loss = cross_entropy(*ours, 0.5, 4 * K)
    reference = written_out(*theirs, 0.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), reference, rtol=1e-2, atol=0)
    loss.backward()
    reference.backward()
    for i in range(2):
        assert ours[i].grad.dtype == torch.bfloat16
        a, b = ours[i].grad.double(), theirs[i].grad
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999
        torch.testing.assert_close(a, b, rtol=0, atol=float(b.abs().max()) / 50)


@pytest.mark.parametrize("values", [1, 3 * K, 1 << 24])
def test_terms_together_are_their_sum_and_prototypes_stand_for_directions(values):
    """Two terms of unlike scale with prototypes of unlike lengths, one of them 0."""
    ours, theirs = inputs(), inputs()
    with torch.no_grad():
        for prototypes in (ours[1], theirs[1]):
            prototypes *= torch.arange(K)[:, None]
    more, twin = (wave(5, D, phase=2.1).requires_grad_() for _ in range(2))
    told, rows, weights = wave(2, K, phase=0.4).softmax(-1), torch.tensor([0, 1, 1, 0, 1]), wave(5).abs()
    features, prototypes, *rest = ours
    terms = [
        distillation.Term(features, *rest),
        distillation.Term(more, told, rows, weights, scale=0.3),
    ]
    loss, each = distillation.together(terms, prototypes, 0.1, unit=True, values=values)
    directions = F.normalize(theirs[1], dim=-1)
    first = written_out(theirs[0], directions, *theirs[2:], 0.1)
    second = written_out(twin, directions, told, rows, weights, 0.1)
    torch.testing.assert_close(loss, first + 0.3 * second)
    torch.testing.assert_close(each, torch.stack([first, second]).detach())
    assert not each.requires_grad
    (3 * loss).backward()
    (3 * (first + 0.3 * second)).backward()
    torch.testing.assert_close(features.grad, theirs[0].grad)
    torch.testing.assert_close(more.grad, twin.grad)
    torch.testing.assert_close(prototypes.grad[1:], theirs[1].grad[1:])  # a vector of zeros has no direction
    assert torch.isfinite(prototypes.grad).all()


def test_one_gradient_of_the_prototypes_and_no_copy(monkeypatch):
    """Of tensors as large as they are, all terms together make one: their gradient."""
    monkeypatch.setattr(distillation, "_SLICE", 1024)
    n, k, d = 32, 512, 16
    prototypes = wave(k, d, phase=1.0).requires_grad_()
    terms = [
        distillation.Term(wave(n, d, phase=i).requires_grad_(), wave(3, k).softmax(-1), rows, torch.ones(n))
        for i, rows in enumerate((torch.arange(n) % 3, torch.arange(n) % 2))
    ]
    with Sizes() as sizes:
        distillation.together(terms, prototypes, 0.1, unit=True, values=4 * k)
    assert sizes.made[k * d] == 1
    assert sizes.largest == k * d


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_targets_made_row_by_row_are_those_of_all_logits(dtype, digits):
    features = F.normalize(wave(6, D, phase=0.3), dim=-1).to(dtype)
    prototypes = (wave(K, D, phase=1.7) * torch.arange(1, K + 1)[:, None]).to(dtype)
    centre = wave(K, scale=0.1).float()
    made = distillation.Targets(features, prototypes, 1 / lengths(prototypes), centre, 0.07)
    logits = features.double() @ F.normalize(prototypes.double(), dim=-1).T
    want = ((logits - centre) / 0.07).softmax(-1)
    assert len(made) == 6
    for rows in (torch.arange(6), torch.tensor([5, 0, 0]), torch.tensor([], dtype=torch.long)):
        found = made[rows]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), want[rows], rtol=0, atol=5 * digits)


def test_bf16_prototypes_in_slices(monkeypatch):
    """Sums in fp32 whatever the slices are, and lengths do not count."""
    found = []
    for size in (1, 2 * D + 1, 1 << 21):
        monkeypatch.setattr(distillation, "_SLICE", size)
        features, prototypes, *rest = inputs(torch.bfloat16)
        cross_entropy(features, prototypes, *rest, 0.5, 4 * K, unit=True).backward()
        found.append(prototypes.grad)
    reference = inputs()
    for i in range(2):
        reference[i].data.copy_(inputs(torch.bfloat16)[i].data)
    written_out(reference[0], F.normalize(reference[1], dim=-1), *reference[2:], 0.5).backward()
    want = reference[1].grad
    for gradient in found:
        torch.testing.assert_close(gradient.double(), want, rtol=0, atol=float(want.abs().max()) / 50)
