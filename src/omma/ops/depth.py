"""Stochastic depth that drops samples instead of multiplying them by zero."""

from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Context(Protocol):
    """What a branch needs beside its input; may differ between samples."""

    def of(self, rows: Int[Tensor, "r"]) -> Self:
        """The same for some samples of the batch."""
        ...


def residual(
    x: Float[Tensor, "b n d"], branch: Callable[..., Tensor], drop: float, *context: Context
) -> Float[Tensor, "b n d"]:
    """x + branch(x, *context), the branch run on a random (1 - drop) of the samples, scaled to keep its mean.

    Dropped samples cost nothing [Oquab 2023, section 4, "efficient stochastic depth"]. `drop` in [0, 1); 0
    where the network is not training. At least one sample is kept.
    """
    if drop == 0:
        return x + branch(x, *context)
    b = x.shape[0]
    kept = max(1, round(b * (1 - drop)))
    rows = torch.randperm(b, device=x.device)[:kept]
    out = branch(x[rows], *(c.of(rows) for c in context))
    return _Added.apply(x, rows, out.to(x.dtype), b / kept)  # pyright: ignore[reportReturnType]


class _Added(torch.autograd.Function):
    """`index_add`, without keeping what is added: torch's own does so for its shape alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, out: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.scale = scale
        return x.index_add(0, rows, out, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (rows,) = ctx.saved_tensors
        return grad, None, grad[rows] * ctx.scale, None
