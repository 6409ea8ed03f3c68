"""Stochastic depth that drops samples instead of multiplying them by zero."""

from collections.abc import Callable
from typing import Protocol, Self

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
    return x.index_add(0, rows, out.to(x.dtype), alpha=b / kept)
