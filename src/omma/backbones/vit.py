"""The Vision Transformer [Dosovitskiy 2020, arXiv 2010.11929], with timm's parameter names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.ops import attention, depth
from omma.ops.norm import norm, norm_linear
from omma.ops.patches import patchify, take
from omma.ops.positions import resample, sincos_2d
from omma.protocols import Backbone, Features


@dataclass(frozen=True)
class Size:
    """Layers, width, heads, and how many times as wide the MLP is."""

    depth: int
    dim: int
    heads: int
    ratio: int = 4


SIZES = {
    "n": Size(4, 192, 3, ratio=2),  # "nano", ours: for images of 32 px and minutes of time
    "ti": Size(12, 192, 3),
    "s": Size(12, 384, 6),
    "b": Size(12, 768, 12),
    "l": Size(24, 1024, 16),
    "h": Size(32, 1280, 16),
}
PATCHES = (2, 4, 8, 14, 16, 32)


class PatchEmbed(nn.Module):
    """Linear embedding of patches. The weight has a convolution's shape, the product is a matrix's.

    On CPUs reshape + linear trains several times as fast as a strided convolution.
    """

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, dim, patch, patch)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))  # as a linear layer's [He 2021]
        nn.init.zeros_(self.proj.bias)  # pyright: ignore[reportArgumentType]

    def forward(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        patches = patchify(images, self.patch)
        if keep is not None:  # before the product: what is dropped is never embedded
            patches = take(patches, keep)
        weight = self.proj.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention of its normalised input (docs/adr/0004)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n d"], before: nn.LayerNorm) -> Float[Tensor, "b n d"]:
        return self.proj(attention.attend(norm_linear(x, before, self.qkv), self.heads))

    def weights(self, x: Float[Tensor, "b n d"], before: nn.LayerNorm) -> Float[Tensor, "b h n n"]:
        """How much each token attends to each."""
        q, k, _ = attention.split(norm_linear(x, before, self.qkv), self.heads)
        return attention.weights(q, k)


class Mlp(nn.Module):
    """Linear, GELU, linear of its normalised input."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n d"], before: nn.LayerNorm) -> Float[Tensor, "b n d"]:
        return self.fc2(F.gelu(norm_linear(x, before, self.fc1)))


class LayerScale(nn.Module):
    """A learned factor for each dimension of a residual branch [Touvron 2021, arXiv 2103.17239]."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self, dim: int, heads: int, hidden: int, drop_path: float = 0.0, layer_scale: float | None = None
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        drop = self.drop_path if self.training else 0.0
        x = depth.residual(x, lambda t: self.ls1(self.attn(t, self.norm1)), drop)
        return depth.residual(x, lambda t: self.ls2(self.mlp(t, self.norm2)), drop)


def blocks(size: Size, drop_path: float, layer_scale: float | None = None) -> nn.Sequential:
    """`size.depth` blocks, stochastic depth rising linearly to `drop_path` at the last."""
    rates = [drop_path * i / max(size.depth - 1, 1) for i in range(size.depth)]
    hidden = size.ratio * size.dim
    return nn.Sequential(*(Block(size.dim, size.heads, hidden, r, layer_scale) for r in rates))


def init_linear(module: nn.Module) -> None:
    """Truncated normal of deviation .02 for weights, 0 for biases [Dosovitskiy 2020]."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ViT(Backbone):
    """Vision Transformer; strictly loads into timm's VisionTransformer of the same shape, and back.

    pool: "token" gives the class token, "mean" the mean of the patch tokens, both after the last norm.
    positions: "learned", or "sincos" (fixed). registers: extra tokens [Darcet 2023, arXiv 2309.16588].
    """

    drops_tokens = True

    def __init__(
        self,
        name: str,
        size: Size,
        *,
        patch: int,
        image_size: int,
        channels: int = 3,
        pool: str = "token",
        positions: str = "learned",
        registers: int = 0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if pool not in ("token", "mean"):
            raise ValueError(f"pool={pool!r}: choose 'token' or 'mean'")
        if positions not in ("learned", "sincos"):
            raise ValueError(f"positions={positions!r}: choose 'learned' or 'sincos'")
        if image_size % patch:
            raise ValueError(f"image size {image_size} is no multiple of {name}'s patch size {patch}")
        self.name, self.dim, self.patch, self.channels = name, size.dim, patch, channels
        self.image_size, self.pool, self.positions = image_size, pool, positions
        self.layer_scale = layer_scale
        side = image_size // patch
        self.patch_embed = PatchEmbed(channels, patch, size.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.dim))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, size.dim)) if registers else None
        prefix = 1 + registers
        self.pos_embed = nn.Parameter(torch.zeros(1, prefix + side * side, size.dim))
        self.blocks = blocks(size, drop_path, layer_scale)
        self.norm = nn.LayerNorm(size.dim, eps=1e-6)

        self.blocks.apply(init_linear)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if self.reg_token is not None:
            nn.init.trunc_normal_(self.reg_token, std=0.02)
        if positions == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            self.pos_embed.data[0, prefix:] = sincos_2d(size.dim, (side, side))
            self.pos_embed.requires_grad_(False)

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: class token and registers."""
        return 1 + (0 if self.reg_token is None else self.reg_token.shape[1])

    def spec(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "image_size": self.image_size,
            "channels": self.channels,
            "pool": self.pool,
            "positions": self.positions,
            "registers": self.prefix - 1,
            "layer_scale": self.layer_scale,
        }

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.patch, width // self.patch

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        return self.patch_embed(images, keep)

    def _embed(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None
    ) -> Float[Tensor, "b m d"]:
        """Positions added, class token and registers in front."""
        side = self.image_size // self.patch
        prefix = self.prefix
        positions = resample(self.pos_embed[:, prefix:], (side, side), grid)
        if keep is not None:
            positions = take(positions.expand(len(tokens), -1, -1), keep)
        front = self.cls_token if self.reg_token is None else torch.cat([self.cls_token, self.reg_token], 1)
        front = (front + self.pos_embed[:, :prefix]).expand(len(tokens), -1, -1)
        return torch.cat([front, tokens + positions], dim=1)

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        x = norm(self.blocks(self._embed(tokens, grid, keep)), self.norm)
        patches = x[:, self.prefix :]
        return Features(x[:, 0] if self.pool == "token" else patches.mean(1), patches, grid)

    @torch.no_grad()
    def attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads n"]:
        """Attention of the last layer to the patches: from the class token, or the mean over all patches."""
        x = self._embed(self.tokenize(images), self.grid(*images.shape[-2:]), None)
        *before, last = cast(list[Block], list(self.blocks))
        for block in before:
            x = block(x)
        maps = last.attn.weights(x, last.norm1)[..., self.prefix :]
        return maps[:, :, 0] if self.pool == "token" else maps[:, :, self.prefix :].mean(2)


def names() -> list[str]:
    return [f"vit-{size}/{patch}" for size in SIZES for patch in PATCHES]


def build(name: str, *, image_size: int, channels: int, **options: Any) -> Backbone | None:
    """A ViT named `vit-SIZE/PATCH`, or None if the name is another family's."""
    match = re.fullmatch(rf"vit-({'|'.join(SIZES)})/(\d+)", name)
    if match is None:
        return None
    patch = int(match[2])
    if not 2 <= patch <= 32:
        raise ValueError(f"model {name!r}: the patch size must lie between 2 and 32")
    return ViT(name, SIZES[match[1]], patch=patch, image_size=image_size, channels=channels, **options)


def timm_arguments(vit: ViT) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer of the same shape."""
    first: Block = vit.blocks[0]  # pyright: ignore[reportAssignmentType]
    return {
        "img_size": vit.image_size,
        "patch_size": vit.patch,
        "in_chans": vit.channels,
        "num_classes": 0,
        "embed_dim": vit.dim,
        "depth": len(vit.blocks),
        "num_heads": first.attn.heads,
        "mlp_ratio": first.mlp.fc1.out_features / vit.dim,
        "global_pool": "token" if vit.pool == "token" else "avg",
        "fc_norm": False,
        "reg_tokens": vit.prefix - 1,
        "init_values": vit.layer_scale,
    }


__all__: Sequence[str] = ("SIZES", "ViT", "build", "names", "timm_arguments")
