"""The common part of plain transformers: patches, prefix tokens, positions, blocks, norm, pooling."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers.block import Packed, Where
from omma.backbones.layers.embed import PatchEmbed
from omma.core.checks import one_of
from omma.core.protocols import Backbone, Features, NoAttention
from omma.ops import recompute
from omma.ops.norm import norm
from omma.ops.packing import pack, unpack
from omma.ops.patches import take
from omma.ops.positions import Interpolation, resample

POOLS = ("token", "mean", "mean_fc_norm")


def check_heads(name: str, dim: int, heads: int, rotary: bool = False) -> None:
    """Raise ValueError for a width that is no multiple of heads, or (rotary) of 4 heads."""
    if dim % heads:
        raise ValueError(f"dim={dim} of {name} is no multiple of heads={heads}")
    if rotary and dim // heads % 4:
        raise ValueError(f"heads of {name} are {dim // heads} wide: rotary positions need a multiple of 4")


def chosen_layers(layers: Sequence[int], count: int, name: str) -> list[int]:
    """Layer numbers from 0; negative ones count from the end. Raises ValueError for a missing layer."""
    for layer in layers:
        if not -count <= layer < count:
            raise ValueError(f"layer {layer}: {name} has {count}, from 0 to {count - 1} or -{count} to -1")
    return [layer % count for layer in layers]


def _without(x: Tensor, hidden: slice, axis: int) -> Tensor:
    """x without some entries of an axis."""
    if hidden.start == hidden.stop:
        return x
    return torch.cat(
        [x.narrow(axis, 0, hidden.start), x.narrow(axis, hidden.stop, x.shape[axis] - hidden.stop)], axis
    )


class Transformer(Backbone):
    """A transformer of constant width; blocks are called with the tokens and their positions (`Where`).

    A subclass creates the modules below (timm's names) and may override `where` (rotary angles, biases).

    pool: "token" is the class token, "mean" the mean of the patch tokens, both after the last norm;
    "mean_fc_norm" applies the norm to the mean only, not to the patches.
    """

    drops_tokens = True
    packs = True
    patch_embed: PatchEmbed
    pos_embed: nn.Parameter | None
    prefix_positions: bool  # do class token and registers have positions?
    interpolation: Interpolation = "antialias"  # of the patches' positions, for other grids
    norm_pre: nn.Module
    blocks: nn.Sequential
    norm: nn.Module
    fc_norm: nn.Module
    image_size: int

    def __init__(self) -> None:
        super().__init__()
        self.prompts: Any = None  # learned tokens that are no part of the features (adapters/vpt.py)

    def _norms(self, dim: int, pool: str, eps: float) -> None:
        """Set the last norm, before or after pooling."""
        one_of("pool", pool, POOLS)
        self.pool = pool
        after = pool == "mean_fc_norm"
        self.norm = nn.Identity() if after else nn.LayerNorm(dim, eps=eps)
        self.fc_norm = nn.LayerNorm(dim, eps=eps) if after else nn.Identity()

    def _front(self) -> list[Tensor]:
        """The class token, distillation token and registers [Darcet 2023, arXiv 2309.16588] that exist."""
        tokens = (getattr(self, name, None) for name in ("cls_token", "dist_token", "reg_token"))
        return [t for t in tokens if t is not None]

    @property
    def prefix(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of tokens before the patches: class token, distillation token, registers."""
        return sum(t.shape[1] for t in self._front())

    @property
    def front(self) -> int:
        """Number of tokens before the patches in the blocks: the prefix and an adapter's prompts."""
        return self.prefix + (0 if self.prompts is None else self.prompts.count)

    @property
    def home(self) -> tuple[int, int]:
        """The grid that positions are made for."""
        return self.grid(self.image_size, self.image_size)

    def where(self, grid: tuple[int, int], keep: Int[Tensor, "b n"] | None) -> Where:
        """The tokens' positions, as attention needs them."""
        return Where(grid, self.front, keep)

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        assert keep is None or self.drops_tokens, f"{self.name} cannot drop tokens"
        return self.patch_embed(images, keep)

    def _embed(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None
    ) -> Float[Tensor, "b m d"]:
        """Add positions and put the prefix tokens and prompts in front."""
        b, front = tokens.shape[0], self._front()  # len() would fix the batch size of an exported graph
        prefix = torch.cat(front, 1) if front else None
        if self.pos_embed is not None:
            own = self.prefix if self.prefix_positions else 0
            positions = resample(self.pos_embed[:, own:], self.home, grid, self.interpolation)
            if keep is not None:
                positions = take(positions.expand(b, -1, -1), keep)
            tokens = tokens + positions
            if prefix is not None and own:
                prefix = prefix + self.pos_embed[:, :own]
        x = tokens if prefix is None else torch.cat([prefix.expand(b, -1, -1), tokens], dim=1)
        x = norm(x, self.norm_pre) if isinstance(self.norm_pre, nn.LayerNorm) else x
        return x if self.prompts is None else self.prompts.insert(x, self.prefix)

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        assert keep is None or self.drops_tokens, f"{self.name} cannot drop tokens"
        x = self._run(self._embed(tokens, grid, keep), self.where(grid, keep))
        return self._features(x, grid)

    def encode_many(
        self, batches: Sequence[tuple[Float[Tensor, "_b _n d"], tuple[int, int]]]
    ) -> list[Features]:
        """In one pass over the packed tokens; only attention runs per length."""
        embedded = [self._embed(tokens, grid, None) for tokens, grid in batches]
        shapes = tuple((x.shape[0], x.shape[1]) for x in embedded)
        where = Packed(shapes, tuple(self.where(grid, None) for _, grid in batches))
        outputs = unpack(self._run(pack(embedded), where), shapes)
        return [self._features(x, grid) for x, (_, grid) in zip(outputs, batches, strict=True)]

    def _run(self, x: Float[Tensor, "b n d"], where: Where | Packed) -> Float[Tensor, "b n d"]:
        """All blocks, and the tokens' last norm."""
        for i, block in enumerate(self.blocks):
            x = recompute.run(block, self._read_by(i, x, where), where, forget=self.recompute)
        return norm(x, self.norm) if isinstance(self.norm, nn.LayerNorm) else x

    def _read_by(
        self, layer: int, x: Float[Tensor, "b n d"], where: Where | Packed
    ) -> Float[Tensor, "b n d"]:
        """The tokens that a layer reads: those of the layer before, with the layer's own prompts."""
        return x if self.prompts is None else self.prompts.renew(x, layer, self.prefix, where)

    def _features(self, x: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Features:
        front, patches = x[:, : self.prefix], x[:, self.front :]
        pooled = x[:, 0] if self.pool == "token" else patches.mean(1)
        return Features(self.fc_norm(pooled), patches, grid, front if self.prefix else None)

    def by_depth(self) -> list[list[nn.Parameter]]:
        last = [*self.norm.parameters(), *self.fc_norm.parameters()]
        blocks = [list(block.parameters()) for block in self.blocks]
        later = {id(p) for group in (*blocks, last) for p in group}
        return [[p for p in self.parameters() if id(p) not in later], *blocks, last]

    def repeated(self) -> list[nn.Module]:
        return list(self.blocks)

    @torch.no_grad()
    def attention(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b heads n n"]]:
        """As every backbone's; an adapter's prompts are left out, so what goes to them is missing in sums."""
        requested = chosen_layers(layers, len(self.blocks), self.name)
        grid = self.grid(*images.shape[-2:])
        x, where = self._embed(self.tokenize(images), grid, None), self.where(grid, None)
        maps: dict[int, Tensor] = {}
        for i, each in enumerate(self.blocks):
            block: Any = each
            x = self._read_by(i, x, where)
            if i in requested:
                if not hasattr(block.attn, "weights"):
                    raise NoAttention(f"layer {i} of {self.name} mixes its tokens without attention weights")
                weights = block.attn.weights(norm(x, block.norm1), where)
                hidden = slice(self.prefix, self.front)
                maps[i] = _without(_without(weights, hidden, 2), hidden, 3)
            if i == max(requested, default=-1):
                break
            x = block(x, where)
        return [maps[i] for i in requested]
