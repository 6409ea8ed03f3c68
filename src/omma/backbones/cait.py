"""CaiT: talking heads among the patches, then class attention [Touvron 2021, arXiv 2103.17239]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers import Mlp, PatchEmbed, init_linear
from omma.backbones.layers.talking_heads import TalkingHeads, scaled_linear
from omma.backbones.layers.transformer import check_heads, chosen_layers
from omma.core.protocols import Backbone, Features
from omma.ops import attention, recompute
from omma.ops.cpu.residual import Layers, residual
from omma.ops.gelu import gelu
from omma.ops.linear import Linear, side_by_side
from omma.ops.norm import DeferredNorm, norm, norm_for_linear
from omma.ops.patches import take
from omma.ops.positions import resample


@dataclass(frozen=True)
class CaitSize:
    """Trunk layers, width, heads, and LayerScale's initial value."""

    depth: int
    dim: int
    heads: int
    layer_scale: float


SIZES = {  # [table 3]; layer_scale as in the paper's code
    "cait-xxs24": CaitSize(24, 192, 4, 1e-5),
    "cait-xxs36": CaitSize(36, 192, 4, 1e-5),
    "cait-xs24": CaitSize(24, 288, 6, 1e-5),
    "cait-s24": CaitSize(24, 384, 8, 1e-5),
    "cait-s36": CaitSize(36, 384, 8, 1e-6),
    "cait-m36": CaitSize(36, 768, 16, 1e-6),
    "cait-m48": CaitSize(48, 768, 16, 1e-6),
}


# ---------------------------------------------------------------- class attention
class ClassAttention(nn.Module):
    """Attention of the class token to itself and the patches [section 3]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = Linear(dim, dim), Linear(dim, dim), Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def _qkv(
        self, token: Tensor | DeferredNorm, tokens: Tensor | DeferredNorm
    ) -> list[Float[Tensor, "b h m e"]]:
        q = self.q(token)
        k, v = side_by_side(tokens, (self.k, self.v)).chunk(2, dim=-1)
        return [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v)]

    def forward(
        self,
        token: Float[Tensor, "b 1 d"] | DeferredNorm,
        tokens: Float[Tensor, "b m d"] | DeferredNorm,
        scale: Float[Tensor, "d"] | None = None,
    ) -> Float[Tensor, "b 1 d"]:
        """tokens: the class token and all patches."""
        q, k, v = self._qkv(token, tokens)
        return scaled_linear(attention.merge(attention.weights(q, k) @ v), self.proj, scale)

    def weights(self, token: Float[Tensor, "b 1 d"], tokens: Float[Tensor, "b m d"]) -> Tensor:
        """The class token's attention weights to itself, then to each patch, [b, heads, 1, m]."""
        q, k, _ = self._qkv(token, tokens)
        return attention.weights(q, k)


# ---------------------------------------------------------------- the network
class CaitMlp(Mlp):
    """An MLP that folds LayerScale's factors into its second layer."""

    def forward(
        self, x: Float[Tensor, "b n d"] | DeferredNorm, scale: Float[Tensor, "d"] | None = None
    ) -> Float[Tensor, "b n d"]:
        return scaled_linear(gelu(self.fc1(x)), self.fc2, scale)

    def branch_layers(self) -> Layers:
        return Layers((self.fc1,), self.fc2, "gelu", folds_scale=True)


class CaitBlock(nn.Module):
    """Attention and MLP with LayerScale."""

    attn: Any

    def __init__(self, dim: int, attn: nn.Module, layer_scale: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = CaitMlp(dim, 4 * dim)
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """x + drop_path(gamma_1 * attn(norm1(x))), then x + drop_path(gamma_2 * mlp(norm2(x)))."""
        drop = self.drop_path if self.training else 0.0
        x = residual(x, self.norm1, self.attn, self.gamma_1, drop)
        return residual(x, self.norm2, self.mlp, self.gamma_2, drop)

    def weights(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n n"]:
        """Attention weights for the same argument."""
        return self.attn.weights(norm(x, self.norm1))


class ClassBlock(CaitBlock):
    """A block of the class token, which attends to itself and the patches [eq. 4]; the patches stay."""

    def forward(self, token: Float[Tensor, "b 1 d"], x: Float[Tensor, "b n d"]) -> Float[Tensor, "b 1 d"]:
        """token + gamma_1 * attn(norm1([token, x])), then token + gamma_2 * mlp(norm2(token))."""
        query = norm_for_linear(token, self.norm1)
        tokens = norm_for_linear(torch.cat([token, x], dim=1), self.norm1)
        token = token + self.attn(query, tokens, self.gamma_1)
        return residual(token, self.norm2, self.mlp, self.gamma_2)

    def weights(self, token: Float[Tensor, "b 1 d"], x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h 1 m"]:
        """Attention weights for the same arguments."""
        return self.attn.weights(norm(token, self.norm1), norm(torch.cat([token, x], dim=1), self.norm1))


class CaiT(Backbone):
    """Class-attention image transformer; strictly loads into timm's Cait of the same shape, and back.

    pooled: the class token after the last norm. Patches go through that norm too, but not through the class
    layers. class_layers: class-attention layers after the trunk's `depth`. layer_scale: initial value.
    drop_path: stochastic depth of the trunk, at the same rate in all layers as in the paper's code.
    Raises ValueError if dim is no multiple of heads.
    """

    drops_tokens = True
    pool = "token"
    prefix = 1  # in the class layers; the trunk sees patches only

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        depth: int,
        dim: int,
        heads: int,
        layer_scale: float,
        class_layers: int = 2,
        patch: int = 16,
        channels: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(name, dim, heads)
        self.name, self.dim, self.patch, self.channels = name, dim, patch, channels
        self.image_size = image_size
        rows, columns = self.grid(image_size, image_size)
        self.patch_embed = PatchEmbed(channels, patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, dim))
        trunk = (CaitBlock(dim, TalkingHeads(dim, heads), layer_scale, drop_path) for _ in range(depth))
        self.blocks = nn.Sequential(*trunk)
        last = (ClassBlock(dim, ClassAttention(dim, heads), layer_scale) for _ in range(class_layers))
        self.blocks_token_only = nn.ModuleList(last)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

        self.blocks.apply(init_linear)
        self.blocks_token_only.apply(init_linear)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        return self.patch_embed(images, keep)

    def _embed(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n d"]:
        """Positions added."""
        positions = resample(self.pos_embed, self.grid(self.image_size, self.image_size), grid)
        if keep is not None:
            positions = take(positions.expand(len(tokens), -1, -1), keep)
        return tokens + positions

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        x = self._embed(tokens, grid, keep)
        for block in self.blocks:
            x = recompute.run(block, x, forget=self.recompute)
        token = self.cls_token.repeat(x.shape[0], 1, 1)
        for block in self.blocks_token_only:
            token = recompute.run(block, token, x, forget=self.recompute)
        token = norm(token, self.norm)
        return Features(token[:, 0], norm(x, self.norm), grid, token)

    def by_depth(self) -> list[list[nn.Parameter]]:
        blocks = [list(block.parameters()) for block in (*self.blocks, *self.blocks_token_only)]
        last = list(self.norm.parameters())
        later = {id(p) for group in (*blocks, last) for p in group}
        return [[p for p in self.parameters() if id(p) not in later], *blocks, last]

    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, *self.blocks_token_only]

    @torch.no_grad()
    def attention(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b heads n m"]]:
        """Softmax weights of the requested layers, numbered from the trunk's first to the last class layer.

        Trunk: [b, heads, n, n] over the patches, after the softmax and before the second mix of the heads,
        after which weights may have any sign. Class layers: [b, heads, 1, 1 + n], the class token first.
        """
        trunk = len(self.blocks)
        requested = chosen_layers(layers, trunk + len(self.blocks_token_only), self.name)
        x = self._embed(self.tokenize(images), self.grid(*images.shape[-2:]), None)
        token = self.cls_token.repeat(x.shape[0], 1, 1)
        maps: dict[int, Tensor] = {}
        for i in range(max(requested, default=-1) + 1):
            block: Any = self.blocks[i] if i < trunk else self.blocks_token_only[i - trunk]
            inputs = (x,) if i < trunk else (token, x)
            if i in requested:
                maps[i] = block.weights(*inputs)
            if i < trunk:
                x = block(x)
            else:
                token = block(token, x)
        return [maps[i] for i in requested]


Encoder = CaiT


def names() -> list[str]:
    return list(SIZES)


def parse(name: str) -> dict[str, Any] | None:
    """Depth, width, heads and LayerScale of a `cait-SIZE`, or None if the name is another family's."""
    if not name.startswith("cait-"):
        return None
    if name not in SIZES:
        raise ValueError(f"model {name!r} is unknown: choose {', '.join(SIZES)}")
    return vars(SIZES[name]).copy()
