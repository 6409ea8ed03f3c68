"""A small transformer that decodes patches to pixels, for masked autoencoders and tokenizers."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omma.backbones.layers.block import Size, blocks, init_linear
from omma.backbones.layers.init import Draw
from omma.ops.linear import Linear, norm_linear
from omma.ops.positions import resample, sincos_2d


class PixelDecoder(nn.Module):
    """Embed, add fixed 2-D sine-cosine positions, a few plain blocks, a norm, a linear layer to `out` values.

    dim: width of the input of `embed`; a subclass may insert tokens between `embed` and `decode`. grid: the
    one that positions are made for. draw: fills a weight matrix with initial values; None: `init_linear`'s.
    """

    positions: Tensor

    def __init__(
        self, dim: int, size: Size, grid: tuple[int, int], out: int, draw: Draw | None = None
    ) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(dim, size.dim)
        self.register_buffer("positions", sincos_2d(size.dim, grid)[None])
        self.blocks = blocks(size)
        self.norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.predict = Linear(size.dim, out)
        self.apply(partial(init_linear, draw=draw))

    def decode(
        self, x: Float[Tensor, "b n d"], grid: tuple[int, int], front: Float[Tensor, "b p d"] | None = None
    ) -> Float[Tensor, "b n o"]:
        """Embedded patches of the whole grid to pixels; `front`: tokens before them, without position."""
        x = x + resample(self.positions, self.grid, grid).to(x.dtype)
        prefix = 0 if front is None else front.shape[1]
        x = self.blocks(x if front is None else torch.cat([front, x], dim=1))
        return norm_linear(x[:, prefix:], self.norm, self.predict)
