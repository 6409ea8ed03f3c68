"""Linear layers by oneDNN's own kernel where that is faster than torch's: bf16 on a CPU.

torch copies the bias into the result first and adds the product to it; that kernel adds the bias, and takes
the GELU, as it writes the product.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.ops.cpu import native
from omma.ops.gelu import gelu

LONG, SMALL = 400, 2**20  # rows from which, and weights up to which, our kernel sums gradients faster


def linear(
    x: Float[Tensor, "*b d"], weight: Float[Tensor, "o d"], bias: Float[Tensor, "o"] | None = None
) -> Float[Tensor, "*b o"]:
    """x W^T + b."""
    if not _theirs(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return _product(x, weight, bias)


def linear_gelu(
    x: Float[Tensor, "*b d"], weight: Float[Tensor, "o d"], bias: Float[Tensor, "o"]
) -> Float[Tensor, "*b o"]:
    """gelu(x W^T + b). In one kernel the sum is not rounded to bf16 before the GELU [Hendrycks 2016]."""
    if torch.is_grad_enabled() or not _theirs(x, weight):
        return gelu(linear(x, weight, bias))
    return _product(x, weight, bias, "gelu")


class Linear(nn.Linear):
    """torch's layer, computed by `linear`."""

    def forward(self, input: Float[Tensor, "*b d"]) -> Float[Tensor, "*b o"]:
        return linear(input, self.weight, self.bias)


def _theirs(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.bfloat16
        and not torch.compiler.is_compiling()
        and _works()
    )


@functools.cache
def _works() -> bool:
    """Processors without AVX-512 have no such kernel in bf16, whatever is said of oneDNN."""
    x = torch.zeros(2, 2, dtype=torch.bfloat16, device="cpu")
    try:
        _product(x, x, None)
    except (RuntimeError, AttributeError):
        return False
    return True


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none" if then == "gelu" else "")


class _Linear(torch.autograd.Function):
    """That kernel has no derivative of its own."""

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
        if of_weight and len(flat) >= LONG and weight.numel() <= SMALL and native.fits(flat, x):
            flat, rows = flat.contiguous(), x.flatten(0, -2).contiguous()
            return dx, *torch.ops.omma.weight_gradient(flat, rows, of_bias)
        dw = flat.t() @ x.flatten(0, -2) if of_weight else None
        return dx, dw, flat.sum(0) if of_bias else None
