"""Linear layers by oneDNN's own kernel where that is faster than torch's: bf16 on a CPU.

torch copies the bias into the result and then adds the product; oneDNN's kernel adds the bias and applies
the GELU as it writes the product.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from omma.ops.cpu import native
from omma.ops.gelu import gelu
from omma.ops.norm import DeferredNorm, norm, norm_for_linear

# omma's kernel sums gradients of weights faster from this many rows on and up to this many weights
MIN_ROWS, MAX_WEIGHTS = 400, 2**20


def linear(
    x: Float[Tensor, "*b d"] | DeferredNorm,
    weight: Float[Tensor, "o d"],
    bias: Float[Tensor, "o"] | None = None,
) -> Float[Tensor, "*b o"]:
    """x W^T + b."""
    if isinstance(x, DeferredNorm):
        x, weight, bias = _folded(x, weight, bias)
    if not _onednn_is_faster(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return _product(x, weight, bias)


def linear_low_rank(
    x: Float[Tensor, "n d"],
    weight: Float[Tensor, "o d"],
    bias: Float[Tensor, "o"] | None,
    a: Float[Tensor, "r d"],
    b: Float[Tensor, "o r"],
    factor: float,
) -> Float[Tensor, "n o"]:
    """x W^T + bias + factor x A^T B^T, with gradients of x, A and B alone: W and bias are frozen."""
    if torch.is_grad_enabled():
        return _LowRank.apply(x, weight, bias, a, b, factor)  # pyright: ignore[reportReturnType]
    return linear(x, weight, bias).addmm_(F.linear(x, a), b.t(), alpha=factor)


def linear_gelu(x: Float[Tensor, "*b d"] | DeferredNorm, layer: nn.Module) -> Float[Tensor, "*b o"]:
    """gelu(layer(x)). In one kernel the sum is not rounded to bf16 before the GELU [Hendrycks 2016]."""
    fused = (
        not torch.is_grad_enabled()
        and type(layer) is Linear
        and isinstance(x, Tensor)
        and _onednn_is_faster(x, layer.weight)
    )
    return _product(x, layer.weight, layer.bias, "gelu") if fused else gelu(layer(x))  # pyright: ignore


class Linear(nn.Linear):
    """torch's layer, computed by `linear`."""

    def forward(self, input: Float[Tensor, "*b d"] | DeferredNorm) -> Float[Tensor, "*b o"]:
        return linear(input, self.weight, self.bias)


def side_by_side(
    x: Float[Tensor, "*b d"] | DeferredNorm,
    layers: Sequence[nn.Linear],
    bias: Float[Tensor, "o"] | None = None,
) -> Float[Tensor, "*b o"]:
    """The outputs of several layers that read the same, one after the other, in one product; plus `bias`.

    Layers of another class (an adapter's) are called one by one.
    """
    if any(type(layer) is not Linear for layer in layers):
        x = norm(*x) if isinstance(x, DeferredNorm) else x
        out = torch.cat([layer(x) for layer in layers], dim=-1) if len(layers) > 1 else layers[0](x)
        return out if bias is None else out + bias
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    if len(layers) == 1:
        assert biases[0] is None or bias is None, "a second bias"
        return linear(x, weights[0], biases[0] if bias is None else bias)
    if bias is None and any(b is not None for b in biases):
        bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases)])
    return linear(x, torch.cat(weights), bias)


def norm_linear(x: Float[Tensor, "*b d"], before: nn.LayerNorm, layer: nn.Module) -> Float[Tensor, "*b o"]:
    """layer(before(x))."""
    return layer(norm_for_linear(x, before) if type(layer) is Linear else norm(x, before))


def _folded(
    deferred: DeferredNorm, weight: Float[Tensor, "o d"], bias: Float[Tensor, "o"] | None
) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "o d"], Float[Tensor, "o"] | None]:
    """Input, weight and bias of the same product: W (s x + t) + b = (W s) x + (W t + b).

    Folding passes over the weights, applying the norm over the tokens: the norm of few tokens is applied.
    """
    x, layer = deferred
    if x.numel() // x.shape[-1] < 4 * weight.shape[0]:
        return norm(x, layer), weight, bias
    x = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    shift = weight @ layer.bias if bias is None else torch.addmv(bias, weight, layer.bias)
    return x, weight * layer.weight, shift


def _onednn_is_faster(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.bfloat16
        and not torch.compiler.is_compiling()
        and _onednn_has_bf16()
    )


@functools.cache
def _onednn_has_bf16() -> bool:
    """Tries the kernel: processors without AVX-512 lack it, whatever torch says of oneDNN."""
    x = torch.zeros(2, 2, dtype=torch.bfloat16, device="cpu")
    try:
        _product(x, x, None)
    except (RuntimeError, AttributeError):
        return False
    return True


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none" if then == "gelu" else "")


class _LowRank(torch.autograd.Function):
    """In the layouts in which narrow products are fast: others take up to 25 times as long in fp32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, factor: float
    ) -> Tensor:
        low = F.linear(x, a)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.factor = factor
        return linear(x, weight, bias).addmm_(low, b.t(), alpha=factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight, a, b, low = ctx.saved_tensors
        of_low = F.linear(grad, b.t().contiguous()).mul_(ctx.factor)
        db = (low.t() @ grad).t().mul(ctx.factor)
        dx = (grad @ weight).addmm_(of_low, a) if ctx.needs_input_grad[0] else None
        return dx, None, None, of_low.t() @ x, db.contiguous(), None


class _Linear(torch.autograd.Function):
    """oneDNN's kernel with its derivative, which torch does not define."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        dx = (flat @ weight).view_as(x) if of_x else None
        if of_weight and len(flat) >= MIN_ROWS and weight.numel() <= MAX_WEIGHTS and native.fits(flat, x):
            flat, rows = flat.contiguous(), x.flatten(0, -2).contiguous()
            return dx, *torch.ops.omma.weight_gradient(flat, rows, of_bias)
        dw = flat.t() @ x.flatten(0, -2) if of_weight else None
        return dx, dw, flat.sum(0) if of_bias else None
