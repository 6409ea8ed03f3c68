"""Visual prompt tuning: learned tokens beside an image's own [Jia 2022, arXiv 2203.12119].

Prompts stand after the class token and registers and before the patches, without positions. Shallow: they go
through all layers. Deep: each layer has prompts of its own, in place of what the layer before made of its
own. They are no part of the features.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.backbones.layers.block import Packed, Where
from omma.backbones.layers.transformer import Transformer
from omma.core.backbone import Backbone
from omma.ops.packing import pack, unpack


@dataclass(frozen=True, kw_only=True)
class Config:
    """prompts d parameters, in each layer where deep. Raises ValueError for values out of range."""

    prompts: int = 10
    deep: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if type(self.prompts) is not int or self.prompts < 1:
            raise ValueError(f"--adapt.prompts {self.prompts}: must be whole and at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--adapt.dropout {self.dropout}: must be in [0, 1)")


class Prompts(nn.Module):
    """layers: that have prompts. bound: initial values are uniform in [-bound, bound]."""

    of_adapter = True  # dropout follows the network's training mode

    def __init__(self, layers: int, count: int, dim: int, bound: float, dropout: float) -> None:
        super().__init__()
        self.count, self.dropout = count, dropout
        self.tokens = nn.Parameter(torch.empty(layers, count, dim).uniform_(-bound, bound))

    def _of(self, layer: int, like: Float[Tensor, "b n d"]) -> Float[Tensor, "b p d"]:
        tokens = self.tokens[layer].expand(like.shape[0], -1, -1)
        return F.dropout(tokens, self.dropout, self.training)

    def insert(self, x: Float[Tensor, "b n d"], prefix: int) -> Float[Tensor, "b m d"]:
        """The first layer's tokens with its prompts, after `prefix` tokens."""
        return torch.cat([x[:, :prefix], self._of(0, x), x[:, prefix:]], dim=1)

    def renew(
        self, x: Float[Tensor, "b m d"], layer: int, prefix: int, where: Where | Packed
    ) -> Float[Tensor, "b m d"]:
        """The tokens that a layer reads, with its own prompts in place of the last one's, if it has any."""
        if not 0 < layer < len(self.tokens):
            return x
        each = [x] if where.shapes is None else unpack(x, where.shapes)
        return pack(
            [torch.cat([t[:, :prefix], self._of(layer, t), t[:, prefix + self.count :]], dim=1) for t in each]
        )


def insert(network: Backbone, config: Config) -> None:
    """Give the network prompts; ValueError for one that is no plain transformer."""
    if not isinstance(network, Transformer):
        raise ValueError(
            f"--adapt vpt needs a plain transformer of omma's (vit, deit, dinov2, dinov3, beit, eva), which "
            f"{network.name} is not: choose --adapt lora or bias"
        )
    weight = next(network.blocks.parameters())
    bound = math.sqrt(6 / (network.channels * network.patch**2 + network.dim))
    layers = len(network.blocks) if config.deep else 1
    prompts = Prompts(layers, config.prompts, network.dim, bound, config.dropout)
    network.prompts = prompts.to(weight.device, weight.dtype)
