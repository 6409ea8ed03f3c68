"""Position embeddings: fixed sine-cosine grids, rotary angles, and resampling to other grids."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omma.ops.attention import Rope
from omma.ops.resampling import resampling

# How positions are resampled to another grid: bicubic with antialiasing (timm), without (transformers), or
# without and to (n + .1) / m of the old grid's m rows, of which n are taken (DINO's and DINOv2's code).
Interpolation = Literal["antialias", "plain", "offset"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("antialias", "plain", "offset")
OFFSET = 0.1


def sincos_2d(dim: int, grid: tuple[int, int], temperature: float = 10_000.0) -> Float[Tensor, "n d"]:
    """Fixed two-dimensional sine-cosine positions [He 2021, appendix A]; `dim` is a multiple of 4.

    The first half of the width encodes the column, the second half the row.
    """
    if dim % 4:
        raise ValueError(f"dim={dim}: sine-cosine positions need a multiple of 4")
    omega = temperature ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )

    def encode(position: Tensor) -> Tensor:
        angle = position.reshape(-1, 1) * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    return torch.cat([encode(columns), encode(rows)], dim=1).float()


def resample(
    positions: Float[Tensor, "1 n d"],
    old: tuple[int, int],
    new: tuple[int, int],
    how: Interpolation = "antialias",
) -> Float[Tensor, "1 m d"]:
    """Bicubic interpolation of patch positions from grid `old` to grid `new`, equal to F.interpolate's.

    Two products with small matrices, computed from the sizes alone, so that an exported network reads any
    size. (With antialiasing, F.interpolate of torch 2.15 is wrong for a new grid of one column.) The `old`
    grid itself keeps its positions, with any `how`.
    """
    if all(isinstance(n, int) for n in new) and old == new:  # sizes of a traced network are symbols
        return positions
    picture = positions[0].float().unflatten(0, old)
    if how == "antialias":
        start = torch.zeros(1, dtype=torch.int64, device=positions.device)
        rows, columns = (resampling(start, start + o, o, n, "bicubic")[0] for o, n in zip(old, new))
    else:
        picture = picture[_padded_index(old[0], picture)][:, _padded_index(old[1], picture)]
        more = _offset(old, new, picture) if how == "offset" else 0.0
        rows, columns = (_cubic(o, n, more, picture) for o, n in zip(old, new))
    rows, columns = rows.to(picture.dtype), columns.to(picture.dtype)
    picture = (rows @ picture.flatten(1)).unflatten(1, (-1, positions.shape[2]))
    return (columns @ picture).flatten(0, 1)[None].to(positions.dtype)


def _padded_index(n: int, like: Tensor) -> Int[Tensor, "m"]:
    """Indices of n values, with the first and the last repeated twice more."""
    return torch.arange(-2, n + 2, device=like.device).clamp(0, n - 1)


def _offset(old: tuple[int, int], new: tuple[int, int], like: Tensor) -> Float[Tensor, ""] | float:
    """.1, or 0 for the old grid; a tensor in a traced network, whose sizes are symbols."""
    if all(isinstance(n, int) for n in new):
        return 0.0 if old == new else OFFSET
    sides = [torch.full((), n, device=like.device) for n in new]
    same = (sides[0] == old[0]) & (sides[1] == old[1])
    return OFFSET * (1 - same.to(torch.float32))


def _cubic(old: int, new: int, more: Float[Tensor, ""] | float, like: Tensor) -> Float[Tensor, "new m"]:
    """Keys' cubic convolution (1981), a = -3/4, of `old` values with two more at each end; not antialiased.

    The new values are old / (new + more) apart.
    On |x| <= 1 it is (a + 2) |x|^3 - (a + 3) |x|^2 + 1, on 1 < |x| < 2 a (|x|^3 - 5 |x|^2 + 8 |x| - 4).
    """
    fp32 = {"device": like.device, "dtype": torch.float32}
    centre = (torch.arange(new, **fp32) + 0.5) * (old / (new + more)) - 0.5
    x = (torch.arange(-2, old + 2, **fp32) - centre[:, None]).abs()
    inner, outer = x.clamp(max=1), x.clamp(1, 2)  # each piece is 0 outside of its range, so they can be added
    return (1.25 * inner - 2.25) * inner**2 + 1 - 0.75 * (((outer - 5) * outer + 8) * outer - 4)


def rope(
    dim: int,
    rows: Float[Tensor, "h"],
    columns: Float[Tensor, "w"],
    frequencies: Float[Tensor, "f"],
    *,
    paired: bool,
    prefix: int = 0,
) -> Rope:
    """Axial rotary positions [Heo 2024, arXiv 2403.13298, eq. 11] of a grid, row by row.

    Half of a head's `dim` dimensions (f = dim / 4 pairs) is rotated by row times frequency, half by column.
    `prefix` tokens before the patches are not rotated.
    """
    if dim % 4:
        raise ValueError(f"heads of {dim} dimensions: rotary positions need a multiple of 4")
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    angles = (grid[..., None] * frequencies).flatten(2).flatten(0, 1)  # [n, dim / 2]: rows, then columns
    angles = F.pad(angles, (0, 0, prefix, 0))
    angles = angles.repeat_interleave(2, dim=-1) if paired else angles.repeat(1, 2)
    return Rope(angles.cos(), angles.sin(), paired)


def rope_indexed(dim: int, grid: tuple[int, int], home: tuple[int, int], prefix: int, like: Tensor) -> Rope:
    """EVA-02's [Fang 2023, arXiv 2303.11331]: indices of the grid, stretched to the `home` grid's range."""
    fp32 = {"device": like.device, "dtype": torch.float32}
    rows, columns = (torch.arange(n, **fp32) / n * m for n, m in zip(grid, home, strict=True))
    frequencies = 10_000.0 ** -(torch.arange(dim // 4, **fp32) / (dim // 4))
    return rope(dim, rows, columns, frequencies, paired=True, prefix=prefix)


def rope_centred(dim: int, grid: tuple[int, int], prefix: int, like: Tensor, base: float = 100.0) -> Rope:
    """DINOv3's [Simeoni 2025, arXiv 2508.10104]: patch centres in [-1, 1] for any grid."""
    fp32 = {"device": like.device, "dtype": torch.float32}
    rows, columns = (2 * (torch.arange(n, **fp32) + 0.5) / n - 1 for n in grid)
    frequencies = 2 * math.pi * base ** -(torch.arange(dim // 4, **fp32) / (dim // 4))
    return rope(dim, rows, columns, frequencies, paired=False, prefix=prefix)
