"""Position embeddings: fixed sine-cosine grids and resampling to other grids."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


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
    positions: Float[Tensor, "1 n d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 m d"]:
    """Bicubic, antialiased interpolation of patch positions from grid `old` to grid `new`."""
    if old == new:
        return positions
    picture = rearrange(positions.float(), "1 (h w) d -> 1 d h w", h=old[0], w=old[1])
    picture = F.interpolate(picture, size=new, mode="bicubic", antialias=True, align_corners=False)
    return rearrange(picture, "1 d h w -> 1 (h w) d").to(positions.dtype)
