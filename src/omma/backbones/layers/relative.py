"""Relative position bias: a learned number for each head and each distance [Bao 2021, arXiv 2106.08254]."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from omma.ops.positions import resample


def distances(grid: tuple[int, int]) -> Int[Tensor, "n n"]:
    """For each pair of places, the entry of a table of (2h - 1)(2w - 1) distances, row by row."""
    h, w = grid
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    return (y[:, None] - y + h - 1) * (2 * w - 1) + (x[:, None] - x + w - 1)


def pairs(
    grid: tuple[int, int], keep: Int[Tensor, "b m"] | None, device: torch.device
) -> Int[Tensor, "*b n n"]:
    """Entries for the class token and all patches, or the kept ones.

    Three more entries follow the distances: from the class token, to it, and of it to itself.
    """
    h, w = grid
    last = (2 * h - 1) * (2 * w - 1)
    found = F.pad(distances(grid), (1, 0, 1, 0))
    found[0], found[:, 0], found[0, 0] = last, last + 1, last + 2
    found = found.to(device)
    if keep is None:
        return found
    rows = F.pad(keep + 1, (1, 0))
    return found[rows[:, :, None], rows[:, None, :]]


def resized(
    table: Float[Tensor, "t h"], home: tuple[int, int], grid: tuple[int, int], extra: int = 3
) -> Float[Tensor, "u h"]:
    """The table for another grid: bicubic in the distances; the last `extra` entries as they are."""
    if all(isinstance(n, int) for n in grid) and home == grid:  # sizes of a traced network are no int
        return table
    old, new = ((2 * h - 1, 2 * w - 1) for h, w in (home, grid))
    spread = resample(table[None, : len(table) - extra], old, new, antialias=False)[0]
    return torch.cat([spread, table[len(table) - extra :]])


def bias(
    table: Float[Tensor, "t h"], home: tuple[int, int], grid: tuple[int, int], pairs: Int[Tensor, "*b n n"]
) -> Float[Tensor, "#b h n n"]:
    """What is added to the scores of each head."""
    found = F.embedding(pairs, resized(table, home, grid))
    return rearrange(found if pairs.ndim > 2 else found[None], "b n m h -> b h n m")
