"""ViT_C: a transformer with a convolutional stem [Xiao 2021, arXiv 2106.14881].

The patch embedding is replaced by a few 3x3 convolutions of stride 2 with batch norm and ReLU, and a 1x1 one.
It learns from little data and in little time where a plain ViT does not. `vitc-1gf` and `vitc-4gf` are the
paper's, named by their cost at 224 px; `vitc-*mf` are made by the same rule for images of 32 px.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.vit import Block, Size, blocks, init_linear
from omma.dist import BatchNorm
from omma.ops.norm import norm
from omma.ops.positions import resample
from omma.protocols import Backbone, Features


@dataclass(frozen=True)
class Shape:
    """Channels and strides of the stem's convolutions, and the transformer."""

    stem: tuple[tuple[int, int], ...]
    size: Size


SHAPES = {
    "vitc-1gf": Shape(((24, 2), (48, 2), (96, 2), (192, 2)), Size(11, 192, 3)),  # [table 2]
    "vitc-4gf": Shape(((48, 2), (96, 2), (192, 2), (384, 2)), Size(11, 384, 6)),
    "vitc-15mf": Shape(((48, 2), (96, 2), (192, 2)), Size(2, 192, 3, ratio=2)),
}


class ViTC(Backbone):
    """Convolutional stem, learned positions, transformer blocks, norm, mean over the tokens.

    The paper pools by a class token; the mean serves few and coarse tokens better.
    """

    drops_tokens = False  # a token has seen its neighbours before masking could hide them

    def __init__(
        self, name: str, shape: Shape, *, image_size: int, channels: int = 3, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.name, self.dim, self.channels, self.image_size = name, shape.size.dim, channels, image_size
        self.patch = 1
        layers: list[nn.Module] = []
        width = channels
        for out, stride in shape.stem:
            layers += [nn.Conv2d(width, out, 3, stride, 1, bias=False), BatchNorm(out), nn.ReLU(inplace=True)]
            width, self.patch = out, self.patch * stride
        layers.append(nn.Conv2d(width, self.dim, 1))
        self.stem = nn.Sequential(*layers)
        side = self.grid(image_size, image_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, side[0] * side[1], self.dim))
        self.blocks = blocks(shape.size, drop_path)
        self.norm = nn.LayerNorm(self.dim, eps=1e-6)
        self.blocks.apply(init_linear)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "image_size": self.image_size, "channels": self.channels}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // self.patch), -(-width // self.patch)

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        assert keep is None, f"{self.name} cannot drop tokens"
        weight: Tensor = self.stem[0].weight  # pyright: ignore[reportAssignmentType]
        images = images.to(weight.dtype, memory_format=torch.channels_last)
        return self.stem(images).flatten(2).transpose(1, 2)

    def _embed(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        return tokens + resample(self.pos_embed, self.grid(self.image_size, self.image_size), grid)

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        assert keep is None, f"{self.name} cannot drop tokens"
        x = norm(self.blocks(self._embed(tokens, grid)), self.norm)
        return Features(x.mean(1), x, grid)

    @torch.no_grad()
    def attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads n"]:
        """Attention of the last layer to the tokens, mean over all tokens that attend."""
        x = self._embed(self.tokenize(images), self.grid(*images.shape[-2:]))
        *before, last = cast(list[Block], list(self.blocks))
        for block in before:
            x = block(x)
        return last.attn.weights(x, last.norm1).mean(2)


def names() -> list[str]:
    return list(SHAPES)


def build(name: str, *, image_size: int, channels: int, **options: Any) -> Backbone | None:
    """A ViT_C, or None if the name is another family's."""
    if name not in SHAPES:
        return None
    return ViTC(name, SHAPES[name], image_size=image_size, channels=channels, **options)
