"""Stochastic depth that drops samples instead of multiplying them by zero."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omma.ops.packing import Shapes, pack, unpack


def residual_on_some(
    x: Float[Tensor, "b n d"],
    branch: Callable[..., Tensor],
    drop: float,
    *context: Any,
    shapes: Shapes | None = None,
) -> Float[Tensor, "b n d"]:
    """x + branch(x, *context) / (1 - drop) for a random (1 - drop) of the samples, x for the others.

    Dropped samples cost nothing [Oquab 2023, section 4, "efficient stochastic depth"]. At least one sample
    keeps the branch, and the factor is the exact inverse of the share that does. drop: in (0, 1). shapes: of
    the sequences that are packed in x, if any; each length draws its own samples. context: what the branch
    needs beside x; one with a method `select(rows)` is reduced to the chosen rows of each length.
    """
    batches = unpack(x, shapes or [(x.shape[0], x.shape[1])])
    rows = [_draw(len(batch), drop, x.device) for batch in batches]
    some = [t.index_select(0, r) for t, r in zip(batches, rows, strict=True)]  # t[r] has a slow derivative
    out = branch(pack(some), *(c.select(rows) if hasattr(c, "select") else c for c in context)).to(x.dtype)
    outs = unpack(out, [(batch.shape[0], batch.shape[1]) for batch in some])
    return pack(
        [
            _AddToRows.apply(batch, r, o, len(batch) / len(r))  # pyright: ignore[reportArgumentType]
            for batch, r, o in zip(batches, rows, outs, strict=True)
        ]
    )


def _draw(b: int, drop: float, device: torch.device) -> Int[Tensor, "r"]:
    return torch.randperm(b, device=device)[: max(1, round(b * (1 - drop)))]


class _AddToRows(torch.autograd.Function):
    """`index_add` that does not save the addend: torch's saves it for its shape alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, out: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.scale = scale
        return x.index_add(0, rows, out, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (rows,) = ctx.saved_tensors
        return grad, None, grad.index_select(0, rows) * ctx.scale, None
