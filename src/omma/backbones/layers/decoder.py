"""A small transformer that turns encoded patches into pixels; masked autoencoders and tokenizers have one."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omma.backbones.layers.block import Size, blocks, init_linear
from omma.ops.linear import Linear, norm_linear
from omma.ops.positions import resample, sincos_2d


class PixelDecoder(nn.Module):
    """Embed, add fixed 2-D sine-cosine positions, a few plain blocks, a norm, a linear layer to `out` values.

    dim: width of what it is given; `embed` takes that to the decoder's own, and a subclass may put tokens in
    between. grid: the one that positions were made for.
    """

    positions: Tensor

    def __init__(self, dim: int, size: Size, grid: tuple[int, int], out: int) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(dim, size.dim)
        self.register_buffer("positions", sincos_2d(size.dim, grid)[None])
        self.blocks = blocks(size)
        self.norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.predict = Linear(size.dim, out)
        self.apply(init_linear)

    def decode(
        self, x: Float[Tensor, "b n d"], grid: tuple[int, int], front: Float[Tensor, "b p d"] | None = None
    ) -> Float[Tensor, "b n o"]:
        """Embedded patches of the whole grid to pixels; tokens in `front` have no position and come along."""
        x = x + resample(self.positions, self.grid, grid).to(x.dtype)
        before = 0 if front is None else front.shape[1]
        x = self.blocks(x if front is None else torch.cat([front, x], dim=1))
        return norm_linear(x[:, before:], self.norm, self.predict)
