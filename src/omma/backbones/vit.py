"""The Vision Transformer [Dosovitskiy 2020, arXiv 2010.11929], DeiT, DINOv2, with timm's parameter names."""

import re
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from omma.backbones.layers import Attention, Block, Mlp, PatchEmbed, Size, SwiGLU, Where, rates
from omma.backbones.layers.init import initialise
from omma.backbones.layers.mixers import BigBird, Fourier, LinearAttention
from omma.backbones.layers.transformer import Transformer, check_heads
from omma.core.checks import one_of
from omma.ops.positions import INTERPOLATIONS, Interpolation, rope_centred, sincos_2d

SIZES = {
    "n": Size(4, 192, 3, ratio=2),  # "nano", ours: for images of 32 px and minutes of time
    "ti": Size(12, 192, 3),
    "s": Size(12, 384, 6),
    "b": Size(12, 768, 12),
    "l": Size(24, 1024, 16),
    "h": Size(32, 1280, 16),
    "g": Size(40, 1536, 24),  # DINOv2's [Oquab 2023, appendix]
}
PATCHES = (2, 4, 8, 14, 16, 32)
POSITIONS = ("learned", "sincos", "rope", "none")
MIXERS = {"softmax": Attention, "linear": LinearAttention, "bigbird": BigBird, "fourier": Fourier}
MLPS = ("gelu", "quickgelu", "swiglu")


class ViT(Transformer):
    """Vision Transformer; strictly loads into timm's VisionTransformer of the same shape, and back.

    positions: "learned", "sincos" (fixed), "rope" (rotary, in every layer) or "none".
    prefix_positions: learned positions for class token and registers too.
    mixer: "softmax" attention, "linear", "bigbird" or "fourier" (backbones/layers/mixers.py).
    norm_pre: a norm before the first block, and no bias in the patch embedding, as CLIP has it
    [Radford 2021, arXiv 2103.00020]. distilled: DeiT's second token [Touvron 2020, arXiv 2012.12877].
    hidden: width within the MLP. interpolation: of positions at other image sizes, "antialias", "plain" or
    "offset" (ops/positions.py). drop_uniform: the same rate of stochastic depth in all layers, as in DINOv2,
    rather than a rising one; drop_exact: the same share of each batch, as in its code, rather than each
    sample on its own. init: whose initial weights (backbones/layers/init.py). Raises ValueError for unknown
    values and impossible combinations.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        patch: int,
        depth: int,
        dim: int,
        heads: int,
        hidden: int,
        channels: int = 3,
        pool: str = "token",
        positions: str = "learned",
        prefix_positions: bool = True,
        registers: int = 0,
        class_token: bool = True,
        distilled: bool = False,
        layer_scale: float | None = None,
        mixer: str = "softmax",
        mlp: str = "gelu",
        qkv_bias: bool = True,
        norm_pre: bool = False,
        eps: float = 1e-6,
        drop_path: float = 0.0,
        drop_uniform: bool = False,
        drop_exact: bool = False,
        interpolation: Interpolation = "antialias",
        init: str = "vit",
    ) -> None:
        super().__init__()
        one_of("interpolation", interpolation, INTERPOLATIONS)
        one_of("positions", positions, POSITIONS)
        one_of("mixer", mixer, tuple(MIXERS))
        one_of("mlp", mlp, MLPS)
        check_heads(name, dim, heads, rotary=positions == "rope")
        if positions == "rope" and mixer in ("linear", "fourier"):
            raise ValueError(f"positions='rope' rotates queries and keys, which mixer={mixer!r} does not use")
        if pool == "token" and not class_token:
            raise ValueError("pool='token' without a class token: choose pool='mean'")
        self.name, self.dim, self.patch, self.channels = name, dim, patch, channels
        self.image_size, self.positions, self.prefix_positions = image_size, positions, prefix_positions
        self.heads, self.drops_tokens, self.interpolation = heads, mixer != "fourier", interpolation

        self.patch_embed = PatchEmbed(channels, patch, dim, bias=not norm_pre)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if distilled else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        own = self.prefix if prefix_positions else 0
        rows, columns = self.home
        absolute = positions in ("learned", "sincos")
        self.pos_embed = nn.Parameter(torch.zeros(1, own + rows * columns, dim)) if absolute else None
        self.norm_pre = nn.LayerNorm(dim, eps=eps) if norm_pre else nn.Identity()

        def block(rate: float, layer: int) -> Block:
            attn = MIXERS[mixer](dim, heads, qkv_bias)
            perceptron = SwiGLU(dim, hidden) if mlp == "swiglu" else Mlp(dim, hidden, mlp)  # pyright: ignore
            return Block(dim, attn, perceptron, rate, layer_scale, eps, drop_exact)

        drops = rates(drop_path, depth, drop_uniform)
        self.blocks = nn.Sequential(*(block(rate, i) for i, rate in enumerate(drops)))
        self._norms(dim, pool, eps)

        if self.pos_embed is not None and positions == "sincos":
            self.pos_embed.data[0, own:] = sincos_2d(dim, (rows, columns))
            self.pos_embed.requires_grad_(False)
        initialise(self, init)

    def where(self, grid: tuple[int, int], keep: Int[Tensor, "b n"] | None) -> Where:
        if self.positions != "rope":
            return Where(grid, self.front, keep)
        angles = rope_centred(self.dim // self.heads, grid, self.front, self.patch_embed.proj.weight)
        return Where(grid, self.front, keep, angles if keep is None else angles.of(keep, self.front))


Encoder = ViT


def names() -> list[str]:
    plain = [f"vit-{size}/{patch}" for size in SIZES for patch in PATCHES]
    return plain + ["deit-ti/16", "deit-s/16", "deit-b/16"] + [f"dinov2-{size}/14" for size in "sblg"]


def parse(name: str) -> dict[str, Any] | None:
    """`vit-SIZE/PATCH`, `deit-SIZE/PATCH` (distilled), `dinov2-SIZE/PATCH` (layer scale), or None.

    `vit/PATCH` has no size of its own: depth, dim, heads and hidden must be given.
    """
    match = re.fullmatch(rf"(vit|deit|dinov2)(?:-({'|'.join(SIZES)}))?/(\d+)", name)
    if match is None:
        return None
    kind, size, patch = match[1], match[2], int(match[3])
    if not 2 <= patch <= 64:
        raise ValueError(f"model {name!r}: the patch size must lie between 2 and 64")
    options: dict[str, Any] = {"patch": patch}
    if kind == "deit":
        options["distilled"] = True
    elif kind == "dinov2":
        options["layer_scale"] = 1e-5
    if size is not None:
        shape = SIZES[size]
        options |= {"depth": shape.depth, "dim": shape.dim, "heads": shape.heads}
        options["hidden"] = int(shape.ratio * shape.dim)
        if size == "g" and kind == "dinov2":
            options |= {"mlp": "swiglu", "hidden": 4096}
    return options
