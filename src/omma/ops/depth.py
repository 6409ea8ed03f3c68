"""Stochastic depth [Huang 2016, arXiv 1603.09382] that leaves samples out, not multiplying them by zero."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omma.ops.packing import Shapes, pack, unpack


def residual_on_some(
    x: Float[Tensor, "b n d"],
    branch: Callable[..., Tensor],
    drop: float,
    *context: Any,
    shapes: Shapes | None = None,
    exact: bool = False,
) -> Float[Tensor, "b n d"]:
    """x + branch(x, *context) / (1 - drop) for the samples that keep the branch, x for the others.

    Each sample is dropped independently with probability `drop` in (0, 1). exact: rather, a share of `drop`
    of the batch (see `chosen`). Dropped samples cost nothing [Oquab 2023, section 4, "efficient stochastic
    depth"]; a compiled graph, whose shapes are fixed, computes independently dropped ones and multiplies them
    by zero. shapes: of the sequences that are packed in x, if any; each length draws its own samples.
    context: what the branch needs beside x; one with a method `select(rows)` is reduced to the chosen rows of
    each length.
    """
    batches = unpack(x, shapes or [(x.shape[0], x.shape[1])])
    if torch.compiler.is_compiling() and not exact:
        outs = unpack(branch(x, *context).to(x.dtype), [(t.shape[0], t.shape[1]) for t in batches])
        outs = [out * _mask(len(out), drop, x.device)[:, None, None] for out in outs]
        return pack([torch.add(t, out, alpha=1 / (1 - drop)) for t, out in zip(batches, outs, strict=True)])
    draws = [chosen(len(batch), drop, x.device, exact) for batch in batches]
    rows = [row for row, _ in draws]
    # t[row] has a slow derivative
    some = [t if len(t) == len(r) else t.index_select(0, r) for t, r in zip(batches, rows, strict=True)]
    if any(len(t) < len(batch) for t, batch in zip(some, batches)):
        context = tuple(c.select(rows) if hasattr(c, "select") else c for c in context)
    out = branch(pack(some), *context).to(x.dtype)
    outs = unpack(out, [(batch.shape[0], batch.shape[1]) for batch in some])
    return pack([_add(t, *draw, out) for t, draw, out in zip(batches, draws, outs, strict=True)])


def chosen(b: int, drop: float, device: torch.device, exact: bool = False) -> tuple[Int[Tensor, "r"], float]:
    """The samples of a batch that keep a branch, in any order, and the factor of its result.

    Each is kept with probability 1 - drop, and the factor is 1 / (1 - drop), so that the expectation is the
    branch's. Where none is kept, one row is named and the factor is 0, so that shapes are never empty and
    gradients are zero. exact: max(int(b (1 - drop)), 1) samples and the inverse of their share, as DINOv2's
    code has it [Oquab 2023]. All b samples are in their order. No accelerator is waited for.
    """
    rows = _draw(b, drop, device, exact)
    if len(rows) == b:
        rows = torch.arange(b, device=device)
    if exact:
        return rows, b / len(rows)
    if len(rows) == 0:
        return torch.zeros(1, dtype=torch.int64, device=device), 0.0
    return rows, 1 / (1 - drop)


def _draw(b: int, drop: float, device: torch.device, exact: bool) -> Int[Tensor, "r"]:
    """All of stochastic depth's randomness outside compiled graphs; r may be 0 unless `exact`."""
    count = max(int(b * (1 - drop)), 1) if exact else int(_count(b, drop, torch.device("cpu")))
    return torch.randperm(b, device=device)[:count]


def _mask(b: int, drop: float, device: torch.device) -> Bool[Tensor, "b"]:
    """Which samples are kept, from the same numbers as `_draw`'s, without shapes that depend on them."""
    count = _count(b, drop, device)
    place = torch.argsort(torch.randperm(b, device=device))
    return place < count


def _count(b: int, drop: float, device: torch.device) -> Float[Tensor, ""]:
    """How many of b samples are kept, each with probability 1 - drop."""
    return torch.binomial(torch.full((), float(b), device=device), torch.full((), 1 - drop, device=device))


def _add(x: Tensor, rows: Tensor, scale: float, out: Tensor) -> Tensor:
    if len(rows) == len(x) and scale:
        return torch.add(x, out, alpha=scale)
    return _AddToRows.apply(x, rows, out, scale)  # pyright: ignore[reportReturnType]


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
