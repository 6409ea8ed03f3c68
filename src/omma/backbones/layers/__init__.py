"""What backbones are built of."""

from omma.backbones.layers.block import Attention, Block, LayerScale, Size, Where, blocks, init_linear, rates
from omma.backbones.layers.embed import PatchEmbed
from omma.backbones.layers.mlp import Mlp, SplitSwiGLU, SwiGLU

__all__ = (
    "Attention",
    "Block",
    "LayerScale",
    "Mlp",
    "PatchEmbed",
    "Size",
    "SplitSwiGLU",
    "SwiGLU",
    "Where",
    "blocks",
    "init_linear",
    "rates",
)
