"""Stochastic depth that drops samples instead of multiplying them by zero."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omma.ops.packing import Shapes, pack, unpack


class Context(Protocol):
    """What a branch needs beside its input; may differ between samples."""

    def of(self, rows: Sequence[Int[Tensor, "_r"]]) -> Self:
        """The same for some samples of each length (of the batch, where there is one)."""
        ...


def residual(
    x: Float[Tensor, "b n d"],
    branch: Callable[..., Tensor],
    drop: float,
    *context: Context,
    shapes: Shapes | None = None,
    summed: Callable[..., Tensor] | None = None,
) -> Float[Tensor, "b n d"]:
    """x + branch(x, *context), the branch run on a random (1 - drop) of the samples, scaled to keep its mean.

    Dropped samples cost nothing [Oquab 2023, section 4, "efficient stochastic depth"]. `drop` in [0, 1); 0
    where the network is not training. shapes: of the sequences that are packed in x, if they are; samples of
    each length are then drawn apart. At least one sample of each is kept. summed(x, *context): branch and
    sum at once, where nothing is dropped.
    """
    if drop == 0:
        return x + branch(x, *context) if summed is None else summed(x, *context)
    parts = unpack(x, shapes or [(x.shape[0], x.shape[1])])
    rows = [_drawn(len(part), drop, x.device) for part in parts]
    some = [part.index_select(0, r) for part, r in zip(parts, rows, strict=True)]  # part[r] is slow to derive
    out = branch(pack(some), *(c.of(rows) for c in context)).to(x.dtype)
    outs = unpack(out, [(part.shape[0], part.shape[1]) for part in some])
    return pack(
        [
            _Added.apply(part, r, o, len(part) / len(r))  # pyright: ignore[reportArgumentType]
            for part, r, o in zip(parts, rows, outs, strict=True)
        ]
    )


def _drawn(b: int, drop: float, device: torch.device) -> Int[Tensor, "r"]:
    return torch.randperm(b, device=device)[: max(1, round(b * (1 - drop)))]


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
        return grad, None, grad.index_select(0, rows) * ctx.scale, None
