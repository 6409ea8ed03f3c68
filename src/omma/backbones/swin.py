"""The Swin Transformer [Liu 2021, arXiv 2103.14030], with timm's parameter names."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers import Mlp, PatchEmbed, rates
from omma.backbones.layers import init as init_layers
from omma.backbones.layers.transformer import chosen_layers
from omma.core.protocols import Backbone, Features
from omma.ops import recompute, windows
from omma.ops.cpu.residual import Layers, residual
from omma.ops.linear import Linear, norm_linear
from omma.ops.norm import DeferredNorm, norm
from omma.ops.patches import padded
from omma.ops.windows import Windows

SIZES: dict[str, dict[str, Any]] = {  # [section 3.3]
    "t": {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "s": {"dim": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "b": {"dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
    "l": {"dim": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)},
}
EPS = 1e-5


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each relative position [eq. 4].

    side: rows and columns of a window. shifted: shift windows by half of that.
    """

    def __init__(self, dim: int, heads: int, side: int, shifted: bool, qkv_bias: bool) -> None:
        super().__init__()
        self.heads, self.side, self.shifted = heads, side, shifted
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def _qkv(self, x: Float[Tensor, "b n d"] | DeferredNorm, cut: Windows) -> Float[Tensor, "b r c 3d"]:
        """Queries, keys and values of the rolled map; padding, zero after the norm, has the biases."""
        rolled = DeferredNorm(cut.roll(x.x), x.layer) if isinstance(x, DeferredNorm) else cut.roll(x)
        qkv = self.qkv(rolled)
        if cut.real is None:
            return qkv
        padding = qkv.new_zeros(()) if self.qkv.bias is None else self.qkv.bias.to(qkv.dtype)
        return torch.where(cut.real, qkv, padding)

    def forward(
        self, x: Float[Tensor, "b n d"] | DeferredNorm, grid: tuple[int, int]
    ) -> Float[Tensor, "b n d"]:
        table = self.relative_position_bias_table
        cut = windows.windows(grid, self.side, self.shifted, table)
        out = windows.attend(self._qkv(x, cut), self.heads, cut, windows.bias(table, cut))
        return cut.unroll(self.proj(out))

    def branch_layers(self) -> Layers:
        return Layers((self.qkv,), self.proj)

    def weights(self, x: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b h n n"]:
        """Attention weights between all tokens of the map; weights of padding are left out."""
        table = self.relative_position_bias_table
        cut = windows.cached(grid, self.side, self.shifted, 1, table.device, table.dtype)
        return windows.weights(self._qkv(x, cut), self.heads, cut, windows.bias(table, cut))


class SwinBlock(nn.Module):
    """Attention within windows and an MLP, with pre-norm [eq. 3]."""

    def __init__(self, attn: WindowAttention, dim: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        """x + drop_path(attn(norm1(x))), then x + drop_path(mlp(norm2(x)))."""
        drop = self.drop_path if self.training else 0.0
        x = residual(x, self.norm1, self.attn, None, drop, None, grid)
        return residual(x, self.norm2, self.mlp, None, drop)


class Merging(nn.Module):
    """Four neighbours become one token of twice the width [section 3.1]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=EPS)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b m e"]:
        """grid: rows and columns of the result."""
        x = rearrange(x, "b (h r w c) d -> b (h w) (c r d)", h=grid[0], r=2, w=grid[1], c=2)
        return norm_linear(x, self.norm, self.reduction)


class Stage(nn.Module):
    """Blocks at one resolution, every second one shifted, after a merging (in all but the first stage)."""

    def __init__(self, downsample: Merging | None, blocks: Sequence[SwinBlock]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)


class Embed(PatchEmbed):
    """Patch embedding with a norm after it."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__(channels, patch, dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, images: Float[Tensor, "b c h w"], keep: None = None) -> Float[Tensor, "b n d"]:
        return norm(super().forward(images, keep), self.norm)


class Swin(Backbone):
    """Swin Transformer; strictly loads into timm's SwinTransformer of the same shape, and back.

    Features are the last stage's tokens after the last norm; pooled, their mean. `tokenize` returns the first
    stage's patches, of `token_patch` pixels and `token_dim` channels: patch / token_patch rows and columns
    per feature.

    Any image size: images are padded with zeros, the mean colour, to a multiple of `patch` (32 pixels). Each
    layer's map is padded to whole windows with zeros, which take part in attention, and then shifted, as in
    the official code for detection and in transformers. (timm shifts before it pads, so that opposite borders
    of the image attend to each other. Without padding all agree.) A map that is no longer than a window is
    one window and is not shifted.

    token_patch: pixels of the first stage's patches. dim: its width, doubled by each further stage. depths,
    heads: of each stage. window: rows and columns of a window, one number or one per stage. ratio: the MLP's
    width over the stage's. Tables of relative positions are made for `image_size`: for the side of a stage's
    map if that is shorter than the window, as in timm. Shorter maps use the middle of the table. init: whose
    initial weights (backbones/layers/init.py). Raises ValueError for impossible combinations.
    """

    drops_tokens = False
    hierarchical = True

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int | Sequence[int] = 7,
        token_patch: int = 4,
        ratio: float = 4,
        qkv_bias: bool = True,
        channels: int = 3,
        drop_path: float = 0.0,
        init: str = "vit",
    ) -> None:
        super().__init__()
        stages = len(depths)
        sides = [window] * stages if isinstance(window, int) else list(window)
        if not len(heads) == len(sides) == stages:
            raise ValueError(f"{name}: depths={depths}, heads={heads}, window={window} differ in length")
        for i, count in enumerate(heads):
            if dim * 2**i % count:
                raise ValueError(
                    f"dim={dim} of {name}: stage {i}, {dim * 2**i} wide, is no multiple of {count} heads"
                )
        self.name, self.channels, self.image_size = name, channels, image_size
        self.dim, self.patch = dim * 2 ** (stages - 1), token_patch * 2 ** (stages - 1)
        self.patch_embed = Embed(channels, token_patch, dim)
        self.layers = nn.ModuleList()
        drop_rates = iter(rates(drop_path, sum(depths)))
        for i in range(stages):
            width = dim * 2**i
            side = min(sides[i], self.grid(image_size, image_size)[0] * 2 ** (stages - 1 - i))
            blocks: list[SwinBlock] = []
            for j in range(depths[i]):
                attn = WindowAttention(width, heads[i], side, j % 2 == 1, qkv_bias)
                blocks.append(SwinBlock(attn, width, int(ratio * width), next(drop_rates)))
            self.layers.append(Stage(Merging(width // 2) if i else None, blocks))
        self.norm = nn.LayerNorm(self.dim, eps=EPS)
        init_layers.initialise(self, init, init_layers.SWIN)

    @property
    def token_dim(self) -> int:
        return self.patch_embed.proj.out_channels

    @property
    def token_patch(self) -> int:
        return self.patch_embed.patch

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        assert keep is None, f"{self.name} cannot drop tokens"
        return self.patch_embed(padded(images, self.patch))

    def _steps(self, grid: tuple[int, int]) -> Iterator[tuple[Merging | SwinBlock, tuple[int, int]]]:
        """All blocks and mergings with the grid of their result; grid: the features'."""
        for i, stage in enumerate(cast(list[Stage], list(self.layers))):
            scale = 2 ** (len(self.layers) - 1 - i)
            stage_grid = grid[0] * scale, grid[1] * scale
            if stage.downsample is not None:
                yield stage.downsample, stage_grid
            for block in cast(list[SwinBlock], list(stage.blocks)):
                yield block, stage_grid

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        assert keep is None, f"{self.name} cannot drop tokens"
        for step, step_grid in self._steps(grid):
            tokens = recompute.run(step, tokens, step_grid, forget=self.recompute)
        x = norm(tokens, self.norm)
        return Features(x.mean(1), x, grid)

    def by_depth(self) -> list[list[nn.Parameter]]:
        """The merging before a stage belongs to the stage's first block."""
        layers = [list(self.patch_embed.parameters())]
        for stage in cast(list[Stage], list(self.layers)):
            blocks = [list(block.parameters()) for block in stage.blocks]
            merging = [] if stage.downsample is None else list(stage.downsample.parameters())
            layers += [merging + blocks[0], *blocks[1:]]
        return [*layers, list(self.norm.parameters())]

    def repeated(self) -> list[nn.Module]:
        return [block for stage in cast(list[Stage], list(self.layers)) for block in stage.blocks]

    @torch.no_grad()
    def attention(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b heads n n"]]:
        """n: tokens of the layer's stage; pairs that share no window have weight 0."""
        grid = self.grid(*images.shape[-2:])
        requested = chosen_layers(layers, len(self.repeated()), self.name)
        maps: dict[int, Tensor] = {}
        x, i = self.tokenize(images), 0
        for step, step_grid in self._steps(grid):
            if isinstance(step, SwinBlock):
                if i in requested:
                    maps[i] = step.attn.weights(norm(x, step.norm1), step_grid)
                if i == max(requested, default=-1):
                    break
                i += 1
            x = step(x, step_grid)
        return [maps[i] for i in requested]


Encoder = Swin


def names() -> list[str]:
    return [f"swin-{size}" for size in SIZES] + ["swin-b/w12", "swin-l/w12"]


def parse(name: str) -> dict[str, Any] | None:
    """`swin-SIZE`, `swin-SIZE/wWINDOW` (default 7), or None.

    `swin` has no size of its own: dim, depths and heads must be given.
    """
    match = re.fullmatch(rf"swin(?:-({'|'.join(SIZES)}))?(?:/w(\d+))?", name)
    if match is None:
        return None
    size = {} if match[1] is None else SIZES[match[1]]
    return size | ({} if match[2] is None else {"window": int(match[2])})
