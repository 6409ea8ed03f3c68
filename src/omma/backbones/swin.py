"""The Swin Transformer [Liu 2021, arXiv 2103.14030], with timm's parameter names."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers import Mlp, PatchEmbed, init_linear, rates
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

    side: rows and columns of a window. shifted: are windows moved by half of that?
    """

    def __init__(self, dim: int, heads: int, side: int, shifted: bool, qkv_bias: bool) -> None:
        super().__init__()
        self.heads, self.side, self.shifted = heads, side, shifted
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def _qkv(self, x: Float[Tensor, "b n d"] | DeferredNorm, cut: Windows) -> Float[Tensor, "b r c 3d"]:
        """Queries, keys and values of the rolled map; padding, zero after the norm, has the biases alone."""
        rolled = DeferredNorm(cut.roll(x.x), x.layer) if isinstance(x, DeferredNorm) else cut.roll(x)
        qkv = self.qkv(rolled)
        if cut.real is None:
            return qkv
        blank = qkv.new_zeros(()) if self.qkv.bias is None else self.qkv.bias.to(qkv.dtype)
        return torch.where(cut.real, qkv, blank)

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
        """How much each token of the map attends to each; what falls on padding is left out."""
        table = self.relative_position_bias_table
        cut = windows.cached(grid, self.side, self.shifted, 1, table.device, table.dtype)
        return windows.weights(self._qkv(x, cut), self.heads, cut, windows.bias(table, cut))


class SwinBlock(nn.Module):
    """Attention within windows and an MLP, each of the normalised input and added to it [eq. 3]."""

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
    """Blocks at one resolution, every second one shifted; a merging before them, in all but the first."""

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

    Features are the last stage's tokens after the last norm; pooled, their mean. `tokenize` gives the first
    stage's patches, of `token_patch` pixels and `token_dim` numbers: patch / token_patch rows and columns
    for each feature.

    Any image size: images are padded with zeros, the mean colour, to a multiple of `patch` (32 pixels). Each
    layer's map is padded to whole windows with zeros, which take part in attention, and then shifted, as in
    the official code for detection and in transformers. (timm shifts, then pads: opposite borders of the
    image attend to each other. Where nothing is padded, all agree.) On a map no longer than a window, the
    window is the map and is not shifted.

    token_patch: pixels of the first stage's patches. dim: its width, doubled by each next stage. depths,
    heads: of each stage. window: rows and columns of a window, one number or one a stage. ratio: how many
    times as wide the MLP is. Tables of relative positions are made for `image_size`: where a stage's map is
    shorter than the window, the map's side counts, as in timm. Maps that are shorter still use the middle of
    the table. Raises ValueError for values that do not go together.
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
    ) -> None:
        super().__init__()
        stages = len(depths)
        sides = [window] * stages if isinstance(window, int) else list(window)
        if not len(heads) == len(sides) == stages:
            raise ValueError(
                f"{name}: depths={depths}, heads={heads} and window={window} differ in their stages"
            )
        for i, each in enumerate(heads):
            if dim * 2**i % each:
                raise ValueError(
                    f"dim={dim} of {name}: stage {i}, {dim * 2**i} wide, is no multiple of {each} heads"
                )
        self.name, self.channels, self.image_size = name, channels, image_size
        self.dim, self.patch = dim * 2 ** (stages - 1), token_patch * 2 ** (stages - 1)
        self.patch_embed = Embed(channels, token_patch, dim)
        self.layers = nn.ModuleList()
        left = iter(rates(drop_path, sum(depths)))
        for i in range(stages):
            wide = dim * 2**i
            side = min(sides[i], self.grid(image_size, image_size)[0] * 2 ** (stages - 1 - i))
            blocks: list[SwinBlock] = []
            for j in range(depths[i]):
                attn = WindowAttention(wide, heads[i], side, j % 2 == 1, qkv_bias)
                blocks.append(SwinBlock(attn, wide, int(ratio * wide), next(left)))
            self.layers.append(Stage(Merging(wide // 2) if i else None, blocks))
        self.norm = nn.LayerNorm(self.dim, eps=EPS)
        self.layers.apply(init_linear)

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
        """All that tokens go through, with the rows and columns that they have there; grid: the features'."""
        for i, stage in enumerate(cast(list[Stage], list(self.layers))):
            scale = 2 ** (len(self.layers) - 1 - i)
            here = grid[0] * scale, grid[1] * scale
            if stage.downsample is not None:
                yield stage.downsample, here
            for block in cast(list[SwinBlock], list(stage.blocks)):
                yield block, here

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        assert keep is None, f"{self.name} cannot drop tokens"
        for step, here in self._steps(grid):
            tokens = recompute.run(step, tokens, here, forget=self.recompute)
        x = norm(tokens, self.norm)
        return Features(x.mean(1), x, grid)

    def by_depth(self) -> list[list[nn.Parameter]]:
        """The merging before a stage belongs to the stage's first block."""
        found = [list(self.patch_embed.parameters())]
        for stage in cast(list[Stage], list(self.layers)):
            blocks = [list(block.parameters()) for block in stage.blocks]
            before = [] if stage.downsample is None else list(stage.downsample.parameters())
            found += [before + blocks[0], *blocks[1:]]
        return [*found, list(self.norm.parameters())]

    def repeated(self) -> list[nn.Module]:
        return [block for stage in cast(list[Stage], list(self.layers)) for block in stage.blocks]

    @torch.no_grad()
    def attention(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b heads n n"]]:
        """Each map is that of its layer's stage; pairs that share no window have 0."""
        grid = self.grid(*images.shape[-2:])
        blocks = [step for step, _ in self._steps(grid) if isinstance(step, SwinBlock)]
        wanted = chosen_layers(layers, len(blocks), self.name)
        maps: dict[int, Tensor] = {}
        x, i = self.tokenize(images), 0
        for step, here in self._steps(grid):
            if isinstance(step, SwinBlock):
                if i in wanted:
                    maps[i] = step.attn.weights(norm(x, step.norm1), here)
                if i == max(wanted, default=-1):
                    break
                i += 1
            x = step(x, here)
        return [maps[i] for i in wanted]


Encoder = Swin


def names() -> list[str]:
    return [f"swin-{size}" for size in SIZES] + ["swin-b/w12", "swin-l/w12"]


def parse(name: str) -> dict[str, Any] | None:
    """`swin-SIZE`, `swin-SIZE/wWINDOW` (7 unless said), or None.

    `swin` has no size of its own: dim, depths and heads must be given.
    """
    match = re.fullmatch(rf"swin(?:-({'|'.join(SIZES)}))?(?:/w(\d+))?", name)
    if match is None:
        return None
    size = {} if match[1] is None else SIZES[match[1]]
    return size | ({} if match[2] is None else {"window": int(match[2])})
