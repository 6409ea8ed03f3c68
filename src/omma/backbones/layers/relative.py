"""Relative position bias: a learned number per head and distance [Bao 2021, arXiv 2106.08254]."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from omma.ops.positions import resample


def distances(grid: tuple[int, int]) -> Int[Tensor, "n n"]:
    """For each pair of patches, the index into a table of (2h - 1)(2w - 1) distances, row by row."""
    h, w = grid
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    return (y[:, None] - y + h - 1) * (2 * w - 1) + (x[:, None] - x + w - 1)


def pairs(
    grid: tuple[int, int], keep: Int[Tensor, "b m"] | None, device: torch.device, front: int = 1
) -> Int[Tensor, "*b n n"]:
    """Indices into the table for the class token and all patches, or those in `keep`.

    Three entries follow the distances: from the class token, to it, and from it to itself. front: tokens
    before the patches; those after the class token have no place, and the entry after the table's last.
    """
    h, w = grid
    last = (2 * h - 1) * (2 * w - 1)
    index = F.pad(distances(grid), (front, 0, front, 0))
    index[0], index[:, 0], index[0, 0] = last, last + 1, last + 2
    index[1:front] = index[:, 1:front] = last + 3
    index = index.to(device)
    if keep is None:
        return index
    first = torch.arange(front, device=device).expand(len(keep), -1)
    rows = torch.cat([first, keep + front], dim=1)
    return index[rows[:, :, None], rows[:, None, :]]


def resized(
    table: Float[Tensor, "t h"], home: tuple[int, int], grid: tuple[int, int], extra: int = 3
) -> Float[Tensor, "u h"]:
    """The table for another grid: bicubic in the distances; the last `extra` entries stay unchanged."""
    if all(isinstance(n, int) for n in grid) and home == grid:  # sizes of a traced network are symbols
        return table
    old, new = ((2 * h - 1, 2 * w - 1) for h, w in (home, grid))
    resampled = resample(table[None, : len(table) - extra], old, new, how="plain")[0]
    return torch.cat([resampled, table[len(table) - extra :]])


def bias(
    table: Float[Tensor, "t h"],
    home: tuple[int, int],
    grid: tuple[int, int],
    pairs: Int[Tensor, "*b n n"],
    unplaced: bool = False,
) -> Float[Tensor, "#b h n n"]:
    """The bias of each head's attention scores. unplaced: are there tokens without a place? Theirs is 0."""
    table = resized(table, home, grid)
    values = F.embedding(pairs, F.pad(table, (0, 0, 0, 1)) if unplaced else table)
    return rearrange(values if pairs.ndim > 2 else values[None], "b n m h -> b h n m")
