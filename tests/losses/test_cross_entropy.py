"""The chunked cross-entropy equals the dense one, and never exceeds its limit of logits in memory."""

import pytest
import torch
import torch.nn.functional as F
from sizes import Sizes
from waves import wave

from omma.losses import distillation
from omma.losses.distillation import LazyProbabilities, Student, Teacher
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


def cross_entropy(
    features, prototypes, targets, rows, weights, temperature, values=1 << 24, normalised=False
):
    student = Student(features, prototypes, temperature, normalised)
    return distillation.cross_entropy(student, Teacher(targets, rows, weights), values)


def dense(features, prototypes, targets, rows, weights, temperature):
    log = (features.double() @ prototypes.double().T / temperature).log_softmax(-1)
    return -(weights[:, None] * targets[rows] * log).sum()


@pytest.mark.parametrize("values", [1, K, 2 * K + 3, 5 * K, N * K, 1 << 24])
def test_any_chunk_gives_what_one_piece_gives(values):
    ours, theirs = inputs(), inputs()
    loss = cross_entropy(*ours, 0.1, values)
    reference = dense(*theirs, 0.1)
    (3 * loss).backward()
    (3 * reference).backward()
    torch.testing.assert_close(loss, reference)
    for i in range(2):
        torch.testing.assert_close(ours[i].grad, theirs[i].grad)


@pytest.mark.parametrize("required", [(True, False), (False, True), (False, False)])
def test_only_what_is_asked_for_gets_a_gradient(required):
    features, prototypes, *rest = inputs()
    features.requires_grad_(required[0])
    prototypes.requires_grad_(required[1])
    loss = cross_entropy(features, prototypes, *rest, 0.1, 3 * K)
    assert loss.requires_grad == any(required)
    twins = inputs()
    torch.testing.assert_close(loss, dense(*twins, 0.1), check_dtype=False)
    if any(required):
        loss.backward()
        dense(*twins, 0.1).backward()
        for ours, theirs, asked in zip((features, prototypes), twins[:2], required, strict=True):
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
        dense(features, prototypes, targets, rows, torch.ones(n), 0.1)
    assert whole.largest == n * k  # the count does count


def test_bf16_is_summed_in_fp32():
    ours, theirs = inputs(torch.bfloat16), inputs()
    for i in range(2):  # the same rounded numbers
        theirs[i].data.copy_(ours[i].data)
    loss = cross_entropy(*ours, 0.5, 4 * K)
    reference = dense(*theirs, 0.5)
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
def test_a_sum_of_pairs_and_prototypes_that_stand_for_directions(values):
    """Two pairs of unlike scale with prototypes of unlike lengths, one of them 0."""
    ours, theirs = inputs(), inputs()
    with torch.no_grad():
        for prototypes in (ours[1], theirs[1]):
            prototypes *= torch.arange(K)[:, None]
    more, twin = (wave(5, D, phase=2.1).requires_grad_() for _ in range(2))
    targets, rows, weights = wave(2, K, phase=0.4).softmax(-1), torch.tensor([0, 1, 1, 0, 1]), wave(5).abs()
    features, prototypes, *rest = ours
    pairs = [
        (Student(features, prototypes, 0.1), Teacher(*rest)),
        (Student(more, prototypes, 0.1), Teacher(targets, rows, weights)),
    ]
    loss, each = distillation.cross_entropies(pairs, (1.0, 0.3), values)
    directions = F.normalize(theirs[1], dim=-1)
    first = dense(theirs[0], directions, *theirs[2:], 0.1)
    second = dense(twin, directions, targets, rows, weights, 0.1)
    torch.testing.assert_close(loss, first + 0.3 * second)
    torch.testing.assert_close(each, torch.stack([first, second]).detach())
    assert not each.requires_grad
    (3 * loss).backward()
    (3 * (first + 0.3 * second)).backward()
    torch.testing.assert_close(features.grad, theirs[0].grad)
    torch.testing.assert_close(more.grad, twin.grad)
    torch.testing.assert_close(prototypes.grad[1:], theirs[1].grad[1:])  # a vector of zeros has no direction
    assert torch.isfinite(prototypes.grad).all()


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("values", [1, 3 * K, 1 << 24])
def test_prototypes_with_a_gain(values: int, normalised: bool) -> None:
    """Gains of both signs, one of them 0, and gradients of features, prototypes and gains."""
    ours, theirs = inputs(), inputs()
    gains = [(torch.arange(K, dtype=torch.float64) - 3).div(2).requires_grad_() for _ in range(2)]
    student = Student(ours[0], ours[1], 0.1, normalised, gains[0])
    loss = distillation.cross_entropy(student, Teacher(*ours[2:]), values)
    rows = F.normalize(theirs[1], dim=-1) if normalised else theirs[1]
    reference = dense(theirs[0], gains[1][:, None] * rows, *theirs[2:], 0.1)
    (3 * loss).backward()
    (3 * reference).backward()
    torch.testing.assert_close(loss, reference)
    for a, b in ((ours[0], theirs[0]), (ours[1], theirs[1]), (gains[0], gains[1])):
        torch.testing.assert_close(a.grad, b.grad)


def test_one_gradient_of_the_prototypes_and_no_copy(monkeypatch):
    """Two pairs allocate a single tensor of the prototypes' size: their gradient."""
    monkeypatch.setattr(distillation, "_SLICE", 1024)
    n, k, d = 32, 512, 16
    prototypes = wave(k, d, phase=1.0).requires_grad_()
    pairs = [
        (
            Student(wave(n, d, phase=i).requires_grad_(), prototypes, 0.1),
            Teacher(wave(3, k).softmax(-1), rows, torch.ones(n)),
        )
        for i, rows in enumerate((torch.arange(n) % 3, torch.arange(n) % 2))
    ]
    with Sizes() as sizes:
        distillation.cross_entropies(pairs, (1.0, 1.0), values=4 * k)
    assert sizes.made[k * d] == 1
    assert sizes.largest == k * d


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_probabilities_of_indexed_rows_are_those_of_all_logits(dtype, digits):
    features = F.normalize(wave(6, D, phase=0.3), dim=-1).to(dtype)
    prototypes = (wave(K, D, phase=1.7) * torch.arange(1, K + 1)[:, None]).to(dtype)
    centre = wave(K, scale=0.1).float()
    lazy = LazyProbabilities(features, prototypes, 1 / lengths(prototypes), centre, 0.07)
    logits = features.double() @ F.normalize(prototypes.double(), dim=-1).T
    want = ((logits - centre) / 0.07).softmax(-1)
    assert len(lazy) == 6
    for rows in (torch.arange(6), torch.tensor([5, 0, 0]), torch.tensor([], dtype=torch.long)):
        probabilities = lazy[rows]
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities.double(), want[rows], rtol=0, atol=5 * digits)


def test_bf16_prototypes_in_slices(monkeypatch):
    """Sums in fp32 whatever the slices are, and lengths do not count."""
    gradients = []
    for size in (1, 2 * D + 1, 1 << 21):
        monkeypatch.setattr(distillation, "_SLICE", size)
        features, prototypes, *rest = inputs(torch.bfloat16)
        cross_entropy(features, prototypes, *rest, 0.5, 4 * K, normalised=True).backward()
        gradients.append(prototypes.grad)
    reference = inputs()
    for i in range(2):
        reference[i].data.copy_(inputs(torch.bfloat16)[i].data)
    dense(reference[0], F.normalize(reference[1], dim=-1), *reference[2:], 0.5).backward()
    want = reference[1].grad
    for gradient in gradients:
        torch.testing.assert_close(gradient.double(), want, rtol=0, atol=float(want.abs().max()) / 50)


@pytest.mark.parametrize("values", [3 * K, 1 << 24])
def test_views_and_hidden_patches_with_heads_of_their_own_are_the_dense_form(values):
    """iBOT's and DINOv2's whole objective against log_softmax over all logits, value and gradients."""
    v, g, b, m = 3, 2, 2, 3
    leaves = [wave(v * b, D), wave(K, D, phase=0.3), wave(m + 2, D, phase=0.6), wave(K, D, phase=0.9)]
    ours, theirs = ([x.double().clone().requires_grad_() for x in leaves] for _ in range(2))
    teacher = wave(g, b, K, phase=1.2).double().softmax(-1)
    patch_teacher, counts = wave(m, K, phase=1.5).double().softmax(-1), torch.tensor([2.0, 2.0, 1.0]).double()
    pairs = [
        (Student(ours[0], ours[1], 0.1), distillation.other_views(teacher, v)),
        (Student(ours[2], ours[3], 0.1), distillation.hidden_patches(patch_teacher, counts, 4, m + 2)),
    ]
    loss, each = distillation.cross_entropies(pairs, (1.0, 0.3), values)

    def log_softmax(features, prototypes):
        return (features @ F.normalize(prototypes, dim=-1).T / 0.1).log_softmax(-1)

    s = log_softmax(theirs[0], theirs[1]).unflatten(0, (v, b))
    images = [-(teacher[i] * s[j]).sum(-1).mean() for i in range(g) for j in range(v) if i != j]
    patches = -(patch_teacher * log_softmax(theirs[2], theirs[3])[:m]).sum(-1) / counts / 4
    image_loss, patch_loss = torch.stack(images).mean(), patches.sum()
    torch.testing.assert_close(each, torch.stack([image_loss, patch_loss]).detach())
    torch.testing.assert_close(loss, image_loss + 0.3 * patch_loss)
    (3 * loss).backward()
    (3 * (image_loss + 0.3 * patch_loss)).backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad)
