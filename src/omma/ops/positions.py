"""Position embeddings: fixed sine-cosine grids, rotary angles, and resampling to other grids."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from omma.ops.attention import Rope


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
    positions: Float[Tensor, "1 n d"], old: tuple[int, int], new: tuple[int, int], antialias: bool = True
) -> Float[Tensor, "1 m d"]:
    """Bicubic interpolation of patch positions from grid `old` to grid `new`."""
    if old == new:
        return positions
    picture = rearrange(positions.float(), "1 (h w) d -> 1 d h w", h=old[0], w=old[1])
    picture = F.interpolate(picture, size=new, mode="bicubic", antialias=antialias)
    return rearrange(picture, "1 d h w -> 1 (h w) d").to(positions.dtype)


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

    Half of a head's `dim` dimensions (f = dim / 4 pairs) turns by row times frequency, half by column.
    `prefix` tokens before the patches are not turned.
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
    where = {"device": like.device, "dtype": torch.float32}
    rows, columns = (torch.arange(n, **where) / n * m for n, m in zip(grid, home, strict=True))
    frequencies = 10_000.0 ** -(torch.arange(dim // 4, **where) / (dim // 4))
    return rope(dim, rows, columns, frequencies, paired=True, prefix=prefix)


def rope_centred(dim: int, grid: tuple[int, int], prefix: int, like: Tensor, base: float = 100.0) -> Rope:
    """DINOv3's [Simeoni 2025, arXiv 2508.10104]: patch centres in [-1, 1], whatever the grid."""
    where = {"device": like.device, "dtype": torch.float32}
    rows, columns = (2 * (torch.arange(n, **where) + 0.5) / n - 1 for n in grid)
    frequencies = 2 * math.pi * base ** -(torch.arange(dim // 4, **where) / (dim // 4))
    return rope(dim, rows, columns, frequencies, paired=False, prefix=prefix)
