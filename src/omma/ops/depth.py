"""Stochastic depth that drops samples instead of multiplying them by zero."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def residual(
    x: Float[Tensor, "b n d"], branch: Callable[[Tensor], Tensor], drop: float
) -> Float[Tensor, "b n d"]:
    """x + branch(x), the branch run on a random (1 - drop) of the samples and scaled up to keep its mean.

    Dropped samples cost nothing [Oquab 2023, section 4, "efficient stochastic depth"]. `drop` in [0, 1); 0
    where the network is not training. At least one sample is kept.
    """
    if drop == 0:
        return x + branch(x)
    b = x.shape[0]
    kept = max(1, round(b * (1 - drop)))
    rows = torch.randperm(b, device=x.device)[:kept]
    return x.index_add(0, rows, branch(x[rows]).to(x.dtype), alpha=b / kept)
