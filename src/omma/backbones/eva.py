"""BEiT, EVA-02 and DINOv3: transformers with relative or rotary positions, with timm's parameter names.

BEiT [Bao 2021, arXiv 2106.08254]: relative position bias in each layer, or one for all; layer scale. EVA-02
[Fang 2023, arXiv 2303.11331]: SwiGLU, rotary positions beside learned ones, a norm within the MLP (sub-LN).
DINOv3 [Simeoni 2025, arXiv 2508.10104]: rotary positions alone, registers, layer scale. In all of them keys
have no bias.
"""

import re
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers import (
    Mlp,
    Packed,
    PatchEmbed,
    SplitSwiGLU,
    SwiGLU,
    Where,
    attend,
    rates,
    relative,
)
from omma.backbones.layers import init as init_layers
from omma.backbones.layers.transformer import Transformer, check_heads
from omma.core.checks import one_of
from omma.ops import attention
from omma.ops.cpu.residual import Layers, residual
from omma.ops.linear import Linear, norm_linear, side_by_side
from omma.ops.norm import DeferredNorm
from omma.ops.positions import rope_centred, rope_indexed

BIASES = ("none", "layer", "shared")
ROPES = ("none", "indexed", "centred")
MLPS = ("gelu", "swiglu", "split_swiglu")


class EvaAttention(nn.Module):
    """Self-attention without a bias for keys.

    fused: one product for queries, keys and values. inner_norm: a norm before the output projection (sub-LN).
    distances: entries of the layer's own table of relative positions; 0 for none.
    """

    undecayed = ("relative_position_bias_table",)

    def __init__(
        self, dim: int, heads: int, *, bias: bool, fused: bool, inner_norm: bool, distances: int, eps: float
    ) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        if fused:
            self.qkv = Linear(dim, 3 * dim, bias=False)
            self.q_bias = nn.Parameter(torch.zeros(dim)) if bias else None
            self.v_bias = nn.Parameter(torch.zeros(dim)) if bias else None
        else:
            self.q_proj = Linear(dim, dim, bias=bias)
            self.k_proj = Linear(dim, dim, bias=False)
            self.v_proj = Linear(dim, dim, bias=bias)
        table = nn.Parameter(torch.zeros(distances, heads)) if distances else None
        self.relative_position_bias_table = table
        self.norm = nn.LayerNorm(dim, eps=eps) if inner_norm else nn.Identity()
        self.proj = Linear(dim, dim)

    def _qkv(self, x: Float[Tensor, "b n d"] | DeferredNorm) -> Float[Tensor, "b n 3d"]:
        if not self.fused:
            return side_by_side(x, (self.q_proj, self.k_proj, self.v_proj))
        q, v = self.q_bias, self.v_bias
        bias = None if q is None or v is None else torch.cat([q, torch.zeros_like(q), v])
        return side_by_side(x, (self.qkv,), bias)

    def _bias(self, where: Where) -> Tensor | None:
        table = self.relative_position_bias_table
        if table is None:
            return where.bias
        assert where.pairs is not None, "a relative bias needs pairs"
        assert where.home is not None
        return relative.bias(table, where.home, where.grid, where.pairs, unplaced=where.prefix > 1)

    def forward(
        self, x: Float[Tensor, "b n d"] | DeferredNorm, where: Where | Packed
    ) -> Float[Tensor, "b n d"]:
        x = attend(self._qkv(x), self.heads, where, self._bias)
        if isinstance(self.norm, nn.LayerNorm):
            return norm_linear(x, self.norm, self.proj)
        return self.proj(x)

    def branch_layers(self) -> Layers:
        reads = (self.qkv,) if self.fused else (self.q_proj, self.k_proj, self.v_proj)
        return Layers(reads, self.proj)

    def weights(self, x: Float[Tensor, "b n d"], where: Where) -> Float[Tensor, "b h n n"]:
        """Attention weights between all tokens."""
        q, k, _ = attention.split(self._qkv(x), self.heads, where.rope)
        return attention.weights(q, k, self._bias(where))


class Shared(nn.Module):
    """One table of relative positions for all layers."""

    undecayed = ("relative_position_bias_table",)

    def __init__(self, distances: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(distances, heads))


class EvaBlock(nn.Module):
    """Pre-norm block; gamma_1 and gamma_2 scale its branches where `layer_scale` is given."""

    def __init__(
        self,
        dim: int,
        attn: EvaAttention,
        mlp: nn.Module,
        drop_path: float,
        layer_scale: float | None,
        eps: float,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        scaled = layer_scale is not None
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale)) if scaled else None

    def forward(self, x: Float[Tensor, "b n d"], where: Where | Packed) -> Float[Tensor, "b n d"]:
        """x + drop_path(gamma_1 * attn(norm1(x))), then x + drop_path(gamma_2 * mlp(norm2(x)))."""
        drop = self.drop_path if self.training else 0.0
        x = residual(x, self.norm1, self.attn, self.gamma_1, drop, where.shapes, where)
        return residual(x, self.norm2, self.mlp, self.gamma_2, drop, where.shapes)


class Eva(Transformer):
    """Strictly loads into timm's Beit (where there is a relative bias) or Eva of the same shape, and back.

    bias: relative positions in each "layer", "shared" by all, or "none". rope: "none", "indexed" (EVA-02's,
    by patch indices stretched to a grid of `rope_home` x `rope_home`), or "centred" (DINOv3's, by position in
    the image). positions: "learned" for class token and patches, or "none". mlp: "gelu", "swiglu" or
    "split_swiglu" of width `hidden`. sub_norm: a norm within the MLP; attn_norm: one within attention; fused:
    one product for queries, keys and values. init: whose initial weights (backbones/layers/init.py). Raises
    ValueError for unknown values.
    """

    prefix_positions = True

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
        positions: str = "none",
        bias: str = "none",
        rope: str = "none",
        rope_home: int = 16,
        registers: int = 0,
        layer_scale: float | None = None,
        mlp: str = "gelu",
        qkv_bias: bool = True,
        fused: bool = True,
        sub_norm: bool = False,
        attn_norm: bool = False,
        eps: float = 1e-6,
        drop_path: float = 0.0,
        init: str = "vit",
    ) -> None:
        super().__init__()
        one_of("positions", positions, ("learned", "none"))
        one_of("bias", bias, BIASES)
        one_of("rope", rope, ROPES)
        one_of("mlp", mlp, MLPS)
        check_heads(name, dim, heads, rotary=rope != "none")
        if bias != "none" and registers:
            raise ValueError(f"registers={registers}: a relative bias covers class token and patches only")
        if sub_norm and mlp != "split_swiglu":
            raise ValueError(f"sub_norm=True needs mlp='split_swiglu', not {mlp!r}")
        self.name, self.dim, self.patch, self.channels = name, dim, patch, channels
        self.image_size, self.heads, self.rope, self.rope_home = image_size, heads, rope, rope_home

        self.patch_embed = PatchEmbed(channels, patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        rows, columns = self.home
        n = self.prefix + rows * columns
        self.pos_embed = nn.Parameter(torch.zeros(1, n, dim)) if positions == "learned" else None
        self.norm_pre = nn.Identity()
        distances = (2 * rows - 1) * (2 * columns - 1) + 3
        self.bias = bias
        if bias == "shared":
            self.rel_pos_bias = Shared(distances, heads)

        def block(rate: float) -> EvaBlock:
            attn = EvaAttention(
                dim, heads, bias=qkv_bias, fused=fused, inner_norm=attn_norm,
                distances=distances if bias == "layer" else 0, eps=eps,
            )  # fmt: skip
            perceptron = {
                "gelu": lambda: Mlp(dim, hidden),
                "swiglu": lambda: SwiGLU(dim, hidden),
                "split_swiglu": lambda: SplitSwiGLU(dim, hidden, sub_norm, eps),
            }[mlp]()
            return EvaBlock(dim, attn, perceptron, rate, layer_scale, eps)

        self.blocks = nn.Sequential(*(block(rate) for rate in rates(drop_path, depth)))
        self._norms(dim, pool, eps)
        init_layers.initialise(self, init, init_layers.EVA)

    def where(self, grid: tuple[int, int], keep: Int[Tensor, "b n"] | None) -> Where:
        like, e, angles = self.patch_embed.proj.weight, self.dim // self.heads, None
        if self.rope == "indexed":
            angles = rope_indexed(e, grid, (self.rope_home, self.rope_home), self.front, like)
        elif self.rope == "centred":
            angles = rope_centred(e, grid, self.front, like)
        if angles is not None and keep is not None:
            angles = angles.of(keep, self.front)
        pairs = None if self.bias == "none" else relative.pairs(grid, keep, like.device, self.front)
        bias = None
        if self.bias == "shared":
            assert pairs is not None
            table = self.rel_pos_bias.relative_position_bias_table
            bias = relative.bias(table, self.home, grid, pairs, unplaced=self.front > 1)
        return Where(grid, self.front, keep, angles, bias, pairs, self.home)


Encoder = Eva

SIZES = {  # layers, width, heads
    "ti": (12, 192, 3),
    "s": (12, 384, 6),
    "s+": (12, 384, 6),
    "b": (12, 768, 12),
    "l": (24, 1024, 16),
    "h+": (32, 1280, 20),
    "g": (40, 1408, 16),
    "7b": (40, 4096, 32),
}
FORMS = {
    "beit": ("ti", "s", "b", "l"),
    "eva": ("g",),
    "eva02": ("ti", "s", "b", "l"),
    "dinov3": ("s", "s+", "b", "l", "h+", "7b"),
}


def names() -> list[str]:
    patch = {"beit": 16, "eva": 14, "eva02": 14, "dinov3": 16}
    return [f"{form}-{size}/{patch[form]}" for form, sizes in FORMS.items() for size in sizes]


def parse(name: str) -> dict[str, Any] | None:
    """`beit-SIZE/PATCH`, `eva-g/14`, `eva02-SIZE/PATCH`, `dinov3-SIZE/PATCH`, or None.

    Without a size ("beit/16"), depth, dim, heads and hidden must be given.
    """
    match = re.fullmatch(r"(beit|eva|eva02|dinov3)(?:-([\w+]+))?/(\d+)", name)
    if match is None or (match[2] is not None and match[2] not in FORMS[match[1]]):
        return None
    form, size, patch = match[1], match[2], int(match[3])
    if not 2 <= patch <= 64:
        raise ValueError(f"model {name!r}: the patch size must lie between 2 and 64")
    options: dict[str, Any] = {"patch": patch}
    if form == "beit":
        options |= {"bias": "layer", "layer_scale": 1e-5 if size == "l" else 0.1, "pool": "mean"}
    elif form == "eva":
        options |= {"positions": "learned"}
    elif form == "eva02":
        large = size in ("b", "l")
        options |= {"positions": "learned", "rope": "indexed", "fused": not large, "sub_norm": large}
        options |= {"mlp": "split_swiglu" if large else "swiglu"}
    else:
        options |= {"rope": "centred", "registers": 4, "layer_scale": 1e-5, "qkv_bias": False, "eps": 1e-5}
        options |= {"mlp": "split_swiglu"} if size in ("s+", "h+", "7b") else {}
    if size is not None:
        layers, dim, heads = SIZES[size]
        hidden = {"eva": 6144, "eva02": dim * 8 // 3}.get(form, 4 * dim)
        if form == "dinov3" and size in ("s+", "h+", "7b"):
            hidden = {"s+": 1536, "h+": 5120, "7b": 8192}[size]
        options |= {"depth": layers, "dim": dim, "heads": heads, "hidden": hidden}
    return options
