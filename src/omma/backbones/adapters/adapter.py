"""Bottlenecks beside the MLPs: AdaptFormer [Chen 2022, arXiv 2205.13535, eq. 4 and 5].

x + MLP(LN(x)) + s W_up ReLU(W_down LN(x)), with W_up zero, so that training starts from the frozen network.
LayerScale and stochastic depth act on the MLP alone.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.core.backbone import Backbone
from omma.ops.cpu.residual import BESIDE
from omma.ops.linear import Linear


@dataclass(frozen=True, kw_only=True)
class Config:
    """(2 width + 1) d + width parameters a block. Raises ValueError for values out of range."""

    width: int = 64
    scale: float = 0.1
    dropout: float = 0.0  # of the bottleneck's activations

    def __post_init__(self) -> None:
        if type(self.width) is not int or self.width < 1:
            raise ValueError(f"--adapt.width {self.width}: must be whole and at least 1")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"--adapt.scale {self.scale}: must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--adapt.dropout {self.dropout}: must be in [0, 1)")


class Bottleneck(nn.Module):
    """s W_up ReLU(W_down x + b) + s c."""

    of_adapter = True  # dropout follows the network's training mode

    def __init__(self, dim: int, config: Config) -> None:
        super().__init__()
        self.scale, self.dropout = config.scale, config.dropout
        self.down, self.up = Linear(dim, config.width), Linear(config.width, dim)
        for p in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(p)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        hidden = F.dropout(torch.relu(self.down(x)), self.dropout, self.training)
        return self.scale * self.up(hidden)


def insert(network: Backbone, config: Config) -> None:
    """Put a bottleneck beside each block's MLP; ValueError for a network whose blocks are not omma's."""
    blocks: list[Any] = [b for b in network.repeated() if hasattr(b, "mlp") and hasattr(b, "norm2")]
    if not blocks:
        raise ValueError(
            f"--adapt adapter needs a transformer of omma's (vit, dinov2, beit, swin, cait, ...), which "
            f"{network.name} is not: choose --adapt lora or bias"
        )
    for block in blocks:
        weight = block.norm2.weight
        bottleneck = Bottleneck(len(weight), config).to(weight.device, weight.dtype)
        block.mlp.add_module(BESIDE, bottleneck)
