"""Sequences of several lengths packed in one tensor [Oquab 2023, arXiv 2304.07193, "sequence packing"].

Layers that treat tokens one by one (norms, linear layers) then run once rather than once for each length, and
so does their backward pass: products are larger, and no gradients of a weight are left to add up.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Shapes = Sequence[tuple[int, int]]  # for each length: number of samples, tokens of each


def pack(batches: Sequence[Float[Tensor, "_b _n d"]]) -> Float[Tensor, "1 t d"]:
    """All tokens in one row, sample after sample; a single batch is returned unchanged."""
    if len(batches) == 1:
        return batches[0]
    return torch.cat([batch.flatten(0, 1) for batch in batches])[None]


def unpack(x: Float[Tensor, "1 t d"], shapes: Shapes) -> list[Float[Tensor, "_b _n d"]]:
    """The batch of each length, as views of x."""
    if len(shapes) == 1:
        return [x]
    batches = x[0].split([b * n for b, n in shapes])
    return [batch.unflatten(0, shape) for batch, shape in zip(batches, shapes, strict=True)]
