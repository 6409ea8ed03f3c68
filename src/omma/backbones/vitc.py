"""ViT_C: a transformer with a convolutional stem [Xiao 2021, arXiv 2106.14881].

The patch embedding is replaced by a few 3x3 convolutions of stride 2 with batch norm and ReLU, and a 1x1 one.
It learns from less data and in less time than a plain ViT. `vitc-1gf` and `vitc-4gf` are the paper's, named
by their cost at 224 px; `vitc-*mf` follow the same rule for images of 32 px.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers import Size, blocks, init_linear
from omma.backbones.layers.transformer import Transformer
from omma.ops.batch_norm import BatchNorm
from omma.ops.convolution import Conv2d

SHAPES = {  # channels of the stem's convolutions, and the transformer
    "vitc-1gf": ((24, 48, 96, 192), Size(11, 192, 3, ratio=3)),  # [table 2]
    "vitc-4gf": ((48, 96, 192, 384), Size(11, 384, 6, ratio=3)),
    "vitc-15mf": ((48, 96, 192), Size(2, 192, 3, ratio=2)),
}


class ViTC(Transformer):
    """Convolutional stem, learned positions, transformer blocks, norm, mean over the tokens.

    The paper pools by a class token; the mean works better with few, coarse tokens.
    """

    drops_tokens = False  # the stem mixes neighbours before tokens could be dropped
    plain = False
    first_layers = ("stem.0.weight",)
    prefix_positions = False

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        convolutions: tuple[int, ...],
        size: Size,
        channels: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.name, self.dim, self.channels, self.image_size = name, size.dim, channels, image_size
        self.patch = 2 ** len(convolutions)
        layers: list[nn.Module] = []
        width = channels
        for out in convolutions:
            layers += [Conv2d(width, out, 3, 2, 1, bias=False), BatchNorm(out), nn.ReLU(inplace=True)]
            width = out
        layers.append(Conv2d(width, self.dim, 1))
        self.stem = nn.Sequential(*layers)
        rows, columns = self.home
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, self.dim))
        self.norm_pre = nn.Identity()
        self.blocks = blocks(size, drop_path)
        self._norms(self.dim, "mean", 1e-6)
        self.blocks.apply(init_linear)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        assert keep is None, f"{self.name} cannot drop tokens"
        weight: Tensor = self.stem[0].weight  # pyright: ignore[reportAssignmentType]
        images = images.to(weight.dtype, memory_format=torch.channels_last)
        return self.stem(images).flatten(2).transpose(1, 2)


Encoder = ViTC


def names() -> list[str]:
    return list(SHAPES)


def parse(name: str) -> dict[str, Any] | None:
    if name not in SHAPES:
        return None
    convolutions, size = SHAPES[name]
    return {"convolutions": convolutions, "size": size}
