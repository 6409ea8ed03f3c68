"""Cross-entropy with prototypes in chunks equals it in one piece, and holds no more logits than it may."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from waves import wave

from omma.losses import distillation

N, K, D = 13, 8, 5


def inputs(dtype=torch.float64):
    """Features, prototypes, targets that do not sum to 1, rows in any order, weights."""
    features = wave(N, D, phase=0.1).to(dtype).requires_grad_()
    prototypes = wave(K, D, phase=0.7).to(dtype).requires_grad_()
    targets = wave(4, K, phase=1.3, scale=2.0).softmax(-1) * torch.tensor([[1.0], [2.0], [0.5], [0.0]])
    rows = torch.tensor([3, 0, 0, 2, 1, 1, 1, 3, 2, 0, 2, 1, 0])
    weights = wave(N, phase=0.2).abs()
    return features, prototypes, targets, rows, weights


def written_out(features, prototypes, targets, rows, weights, temperature):
    log = (features.double() @ prototypes.double().T / temperature).log_softmax(-1)
    return -(weights[:, None] * targets[rows] * log).sum()


@pytest.mark.parametrize("values", [1, K, 2 * K + 3, 5 * K, N * K, 1 << 24])
def test_any_chunk_gives_what_one_piece_gives(values):
    ours, theirs = inputs(), inputs()
    loss = distillation.cross_entropy(*ours, 0.1, values)
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
    loss = distillation.cross_entropy(features, prototypes, *rest, 0.1, 3 * K)
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
        lambda f, p: distillation.cross_entropy(f, p, *rest, 0.5, 3 * K), (features, prototypes)
    )


def test_nothing_to_compare_is_zero():
    features, prototypes, targets, rows, weights = inputs()
    features = features.detach()[:0].requires_grad_()
    loss = distillation.cross_entropy(features, prototypes, targets[:0], rows[:0], weights[:0], 0.1)
    loss.backward()
    assert loss == 0
    assert prototypes.grad.abs().max() == 0
    assert features.grad.shape == (0, D)


class Sizes(TorchDispatchMode):
    """How many numbers the largest tensor that any operation makes has, and how often matrices multiply."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *made])
        self.products += function is torch.ops.aten.mm.default
        return out


def test_no_more_logits_at_a_time_than_allowed():
    """640 features, 64 prototypes, 2,048 logits at a time; the features and their gradient have 1,920."""
    n, k, d, values = 640, 64, 3, 2048
    features, prototypes = wave(n, d).requires_grad_(), wave(k, d, phase=1.0).requires_grad_()
    targets, rows = wave(5, k).softmax(-1), torch.arange(n) % 5
    with Sizes() as sizes:
        loss = distillation.cross_entropy(features, prototypes, targets, rows, torch.ones(n), 0.1, values)
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
    loss = distillation.cross_entropy(*ours, 0.5, 4 * K)
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
