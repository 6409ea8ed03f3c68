"""Linear layers by oneDNN's kernel equal torch's, and so do their derivatives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from omma.ops import linear as module
from omma.ops.linear import Linear, linear, linear_gelu, norm_linear
from omma.ops.norm import DeferredNorm

SHAPES = [((5, 7), 3), ((2, 9, 16), 24), ((1, 1, 4), 4), ((0, 8), 6)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_bf16_equals_fp32_within_its_rounding(shape: tuple[int, ...], out: int, bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).bfloat16().requires_grad_()
    weight = torch.randn(out, shape[-1]).bfloat16().requires_grad_()
    b = torch.randn(out).bfloat16().requires_grad_() if bias else None
    inputs = [t for t in (x, weight, b) if t is not None]
    exact = [t.detach().float().requires_grad_() for t in inputs]
    ours, theirs = linear(x, weight, b), F.linear(*exact)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), theirs, atol=0.06, rtol=0.01)
    grad = torch.randn_like(theirs).bfloat16()
    for one, other in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, exact, grad.float())
    ):
        assert one.shape == other.shape
        torch.testing.assert_close(one.float(), other, atol=0.06, rtol=0.01)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight, b), ours.detach(), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_gelu_by_any_route(dtype: torch.dtype, training: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = (t.to(dtype) for t in (torch.randn(2, 5, 8), torch.randn(12, 8), torch.randn(12)))
    layer = Linear(8, 12).to(dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    expected = F.gelu(x.double() @ weight.double().T + bias.double())
    with torch.set_grad_enabled(training):
        found = linear_gelu(x, layer)
    assert (found.double() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.06)


def test_what_needs_no_gradient_gets_none() -> None:
    layer = Linear(6, 4).bfloat16()
    layer.weight.requires_grad_(False)
    layer(torch.randn(3, 6).bfloat16()).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert torch.equal(layer.bias.grad.float(), torch.full((4,), 3.0))


def test_processors_without_that_kernel_use_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: object) -> None:
        raise RuntimeError("could not create a primitive descriptor")

    layer, x = Linear(6, 4).bfloat16(), torch.randn(3, 6).bfloat16()
    monkeypatch.setattr(module, "_product", lacking)
    module._onednn_has_bf16.cache_clear()
    try:
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    finally:
        module._onednn_has_bf16.cache_clear()


def test_other_dtypes_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("called for fp32")

    monkeypatch.setattr(module, "_product", never)
    layer, x = Linear(6, 4), torch.randn(3, 6)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("tokens", [5, 400])
def test_a_deferred_norm_is_applied_or_folded(tokens: int) -> None:
    """Either way gives layer(norm(x)) and its gradients; a layer of another class gets plain tensors."""
    torch.manual_seed(0)
    before, layer, x = (
        nn.LayerNorm(16).bfloat16(),
        Linear(16, 48).bfloat16(),
        torch.randn(tokens, 16).bfloat16(),
    )
    for p in before.parameters():
        p.data += 0.3 * torch.randn_like(p)
    exact_before, exact_layer = copy.deepcopy(before).double(), nn.Linear(16, 48).double()
    exact_layer.load_state_dict(layer.state_dict())
    exact = exact_layer(exact_before(x.double()))
    foreign = copy.deepcopy(exact_layer).bfloat16()
    for y in (layer(DeferredNorm(x, before)), norm_linear(x, before, layer), norm_linear(x, before, foreign)):
        assert (y.double() - exact).norm() < 0.01 * exact.norm()
    ours = torch.autograd.grad(
        layer(DeferredNorm(x, before)).float().sin().sum(), [*before.parameters(), *layer.parameters()]
    )
    theirs = torch.autograd.grad(exact.sin().sum(), [*exact_before.parameters(), *exact_layer.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        assert (one.double() - other).norm() < 0.02 * other.norm()
