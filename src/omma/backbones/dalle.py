"""The encoder of DALL-E's tokenizer [Ramesh 2021, arXiv 2102.12092, appendix A.1]: residual convolutions.

A 1x1 convolution maps its last feature map to the logits of 8,192 codes, which BEiT learns to predict;
published weights hold that layer beside the encoder as `codes`.
"""

import math
import re
from typing import Any, cast

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers import rates
from omma.core.protocols import Backbone, Features
from omma.ops.depth import chosen
from omma.ops.patches import padded

GROUPS = 4  # a pooling after each but the last


class DalleBlock(nn.Module):
    """x + g res(x), res: three 3x3 convolutions of a quarter of the width and one 1x1, each after a ReLU.

    g = 1 / layers^2, with the layers of the whole network; x is projected where the width changes.
    """

    def __init__(self, fan_in: int, width: int, layers: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        hidden = width // 4
        self.gain = 1 / layers**2
        self.id_path = nn.Conv2d(fan_in, width, 1) if fan_in != width else nn.Identity()
        self.conv_1 = nn.Conv2d(fan_in, hidden, 3, padding=1)
        self.conv_2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv_3 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv_4 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        dropped = self.training and self.drop_path > 0
        rows, scale = chosen(len(x), self.drop_path, x.device) if dropped else (None, 1.0)
        inner = x if rows is None else x[rows]
        for conv in (self.conv_1, self.conv_2, self.conv_3, self.conv_4):
            inner = conv(F.relu(inner))
        if rows is None:
            return self.id_path(x) + self.gain * inner
        return self.id_path(x).index_add(0, rows, inner, alpha=self.gain * scale)


class Dalle(Backbone):
    """Four groups of residual blocks of 1, 2, 4 and 8 times `hidden` channels, max-pooled 2x2 between them.

    `patches` are the rectified features that the code layer reads, `pooled` their mean. There is neither
    attention nor a norm. depth: blocks in each group.
    """

    drops_tokens = False  # convolutions mix neighbours
    plain = False
    first_layers = ("conv1.weight",)
    patch = 2 ** (GROUPS - 1)

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        hidden: int,
        depth: int,
        channels: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden % 4:
            raise ValueError(f"hidden={hidden} of {name}: must be a multiple of 4")
        self.name, self.image_size, self.channels = name, image_size, channels
        self.conv1 = nn.Conv2d(channels, hidden, 7, padding=3)
        drop_rates, groups, width = iter(rates(drop_path, GROUPS * depth)), [], hidden
        for g in range(GROUPS):
            blocks = []
            for _ in range(depth):
                blocks.append(DalleBlock(width, hidden * 2**g, GROUPS * depth, next(drop_rates)))
                width = hidden * 2**g
            groups.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*groups)
        self.dim = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as in the published code
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
                nn.init.zeros_(cast(Tensor, module.bias))

    @property
    def token_dim(self) -> int:
        """Channels before the last group."""
        return self.dim // 2

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """The map that the last group reads."""
        assert keep is None, f"{self.name} cannot drop tokens"
        x = self.conv1(padded(images, self.patch).to(self.conv1.weight.dtype))
        for group in self.blocks[:-1]:
            x = F.max_pool2d(group(x), 2)
        return x.flatten(2).transpose(1, 2)

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        assert keep is None, f"{self.name} cannot drop tokens"
        x = F.relu(self.blocks[-1](tokens.transpose(1, 2).unflatten(2, grid)))
        patches = x.flatten(2).transpose(1, 2)
        return Features(patches.mean(1), patches, grid)


Encoder = Dalle


def names() -> list[str]:
    return ["dalle/8"]


def parse(name: str) -> dict[str, Any] | None:
    """`dalle/8`, OpenAI's shape; `hidden` and `depth` make it smaller. None for other names."""
    if re.fullmatch(r"dalle/\d+", name) is None:
        return None
    if name != "dalle/8":
        raise ValueError(f"model {name!r}: the only patch size is 8, choose dalle/8")
    return {"hidden": 256, "depth": 2}
