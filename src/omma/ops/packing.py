"""Sequences of several lengths in one tensor, for all that treats tokens one by one.

A norm or a linear layer then runs once, not once a length, and so does its backward pass: on larger products,
and with one gradient of each weight in place of several to add up [Oquab 2023, arXiv
2304.07193, "sequence packing"].
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Shapes = Sequence[tuple[int, int]]  # samples of each length, and tokens of each of them


def pack(parts: Sequence[Float[Tensor, "_b _n d"]]) -> Float[Tensor, "1 t d"]:
    """All tokens in one row, sample after sample; of one length: the batch as it is."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.flatten(0, 1) for part in parts])[None]


def unpack(x: Float[Tensor, "1 t d"], shapes: Shapes) -> list[Float[Tensor, "_b _n d"]]:
    """The batch of each length, as views."""
    if len(shapes) == 1:
        return [x]
    parts = x[0].split([b * n for b, n in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]
