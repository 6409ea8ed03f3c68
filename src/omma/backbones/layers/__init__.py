"""Layers of backbones."""

from omma.backbones.layers.block import (
    Attention,
    Block,
    LayerScale,
    Packed,
    Size,
    Where,
    attend,
    blocks,
    init_linear,
    rates,
)
from omma.backbones.layers.embed import PatchEmbed
from omma.backbones.layers.mlp import Mlp, SplitSwiGLU, SwiGLU

__all__ = (
    "Attention", "Block", "LayerScale", "Mlp", "Packed", "PatchEmbed", "Size", "SplitSwiGLU", "SwiGLU",
    "Where", "attend", "blocks", "init_linear", "rates",
)  # fmt: skip
