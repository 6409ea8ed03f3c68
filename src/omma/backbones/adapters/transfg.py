"""TransFG: few patches, chosen by attention, reach the last block [He 2021, arXiv 2103.07976].

Parts distinguish classes that differ in details (species, types, grades). Patches overlap; each head of the
attention chooses one of them, and the last block receives the class token and these alone. It trains the
whole network, together with a contrastive loss (losses/parts.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.eva import Eva, EvaAttention
from omma.backbones.layers import Attention, Where, init_linear
from omma.backbones.layers.transformer import Transformer, chosen_layers
from omma.backbones.vit import ViT
from omma.core.dtensor import is_sharded
from omma.core.protocols import Backbone, Features
from omma.ops import recompute
from omma.ops.linear import linear
from omma.ops.norm import norm
from omma.ops.patches import overlapping, take
from omma.ops.positions import resample

FREEZES = False  # all of the network is trained
MAP_SIZE = 1 << 24  # numbers in the attention maps that exist at a time (64 MB)


@dataclass(frozen=True, kw_only=True)
class Config:
    """How patches overlap, and what the last block starts from."""

    stride: int | None = None  # pixels from patch to patch; None: 3/4 of the patch, 12 of 16 as in the paper
    fresh_last: bool = False  # is the last block initialised anew, as in the published code?

    def __post_init__(self) -> None:
        if self.stride is not None and (type(self.stride) is not int or self.stride < 1):
            raise ValueError(f"--adapt.stride {self.stride}: must be whole and at least 1")


def insert(network: Backbone, config: Config) -> None:
    """Let the patches overlap and the last block see the chosen ones; nothing is frozen.

    Positions are resampled to the larger grid. Raises ValueError for networks without class token, and for
    all but plain vision transformers.
    """
    _check(network)
    assert isinstance(network, Transformer)
    stride = network.patch * 3 // 4 if config.stride is None else config.stride
    if stride > network.patch:
        raise ValueError(
            f"--adapt.stride {stride}: leaves gaps between patches of {network.patch} px: give less"
        )
    home, own = network.home, network.prefix if network.prefix_positions else 0
    parts: Any = network
    parts.__class__ = PartsViT if isinstance(network, ViT) else PartsEva
    parts.stride, parts.drops_tokens = stride, False
    if network.pos_embed is not None:
        old = network.pos_embed
        new = torch.cat(
            [old[:, :own], resample(old[:, own:], home, network.home, network.interpolation)], dim=1
        ).detach()
        network.pos_embed = nn.Parameter(new, requires_grad=old.requires_grad)
    if config.fresh_last:
        _initialise(network.blocks[-1])


def _check(network: Backbone) -> None:
    """Raise ValueError for a network that chooses no parts, with what to do."""
    why = ""
    if not isinstance(network, (ViT, Eva)) or getattr(network, "bias", "none") != "none":
        why = "is no plain vision transformer, whose class token attends to all patches"
    elif network.pool != "token":
        why = (
            "is pooled by the mean of its patches, and parts are chosen by a class token's attention: start "
            "from a network with one (omma pretrain --model.pool token)"
        )
    elif not all(type(block.attn) in (Attention, EvaAttention) for block in network.blocks):
        why = "has no softmax attention, by which parts are chosen"
    elif len(network.blocks) < 2:
        why = "has one block, and parts are chosen by the blocks before the last"
    if why:
        raise ValueError(f"--adapt transfg: {network.name} {why}; or choose --adapt lora or full")


def _initialise(block: nn.Module) -> None:
    """As a new block without layer scale, whose usual start near 0 would need long training."""
    block.apply(init_linear)
    for name, p in block.named_parameters():
        layer, _, leaf = name.rpartition(".")
        if leaf.startswith("gamma") or (leaf == "weight" and layer.endswith(("norm", "norm1", "norm2"))):
            nn.init.ones_(p)
        elif leaf.endswith("bias"):
            nn.init.zeros_(p)


class Parts(Transformer):
    """A transformer with overlapping patches, whose last block receives the prefix tokens and a few patches.

    Distillation token and registers are no part of the image: the last block receives them too. `patches` of
    the features are those that the last block would have received, after the last norm.
    """

    plain = packs = False
    contrast = 1.0
    stride: int  # pixels from patch to patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """floor((side - patch) / stride) + 1; what is left at right and bottom is not seen.

        [He 2021, image sequentialization].
        """
        rows, columns = ((max(side, self.patch) - self.patch) // self.stride + 1 for side in (height, width))
        return rows, columns

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        assert keep is None, f"{self.name} cannot drop tokens"
        kernel = self.patch_embed.proj
        weight = kernel.weight.flatten(1)
        return linear(overlapping(images, self.patch, self.stride).to(weight.dtype), weight, kernel.bias)

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        assert keep is None, f"{self.name} cannot drop tokens"
        inputs, where = self._inputs(tokens, grid)
        numbers = self._scores(inputs, where).argmax(-1)
        x, where = self._last_input(inputs, where, numbers)
        last = recompute.run(self.blocks[-1], x, where, forget=self.recompute)
        assert isinstance(self.norm, nn.LayerNorm), "networks with a class token have a last norm"
        last, patches = norm(last, self.norm), norm(inputs[-1][:, self.prefix :], self.norm)
        return Features(last[:, 0], patches, grid, last[:, : self.prefix])

    def encode_many(
        self, batches: Sequence[tuple[Float[Tensor, "_b _n d"], tuple[int, int]]]
    ) -> list[Features]:
        return [self.encode(tokens, grid) for tokens, grid in batches]

    def _inputs(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[list[Float[Tensor, "b n d"]], Where]:
        """What each block receives; the last one, before parts are chosen."""
        where = self.where(grid, None)
        inputs = [self._embed(tokens, grid, None)]
        for block in list(self.blocks)[:-1]:
            inputs.append(recompute.run(block, inputs[-1], where, forget=self.recompute))
        return inputs, where

    def _last_input(
        self, inputs: list[Float[Tensor, "b n d"]], where: Where, numbers: Int[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b m d"], Where]:
        """The tokens that the last block receives, and where they lie."""
        front, patches = inputs[-1][:, : self.prefix], inputs[-1][:, self.prefix :]
        return torch.cat([front, take(patches, numbers)], dim=1), self.where(where.grid, numbers)

    @torch.no_grad()
    def _scores(self, inputs: Sequence[Float[Tensor, "b n d"]], where: Where) -> Float[Tensor, "b k n"]:
        """How strongly each head relates the class token to each patch (`attention_product`).

        The maps are computed a second time, without gradients, for so many images at a time that they stay
        small: kept for the backward pass they would take more memory than all other activations.
        """
        earlier: list[Any] = list(self.blocks)[:-1]
        if any(is_sharded(p) for p in self.parameters()):
            raise ValueError(
                "--adapt transfg reads attention maps, which sharded blocks do not give: --shard none"
            )

        def maps(rows: slice) -> Iterator[Tensor]:
            for block, x in reversed(list(zip(earlier, inputs))):
                yield block.attn.weights(norm(x[rows], block.norm1), where).float()

        b, n = inputs[0].shape[:2]
        if not (isinstance(b, int) and isinstance(n, int)):  # a traced network's sizes are symbols
            return attention_product(maps(slice(None)))[..., self.prefix :]
        step = max(1, MAP_SIZE // (earlier[0].attn.heads * n * n))
        rows = [attention_product(maps(slice(i, i + step))) for i in range(0, b, step)]
        return torch.cat(rows)[..., self.prefix :]

    @torch.no_grad()
    def part_scores(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k n"]:
        """How strongly each head relates the class token to each patch; the largest is chosen."""
        return self._scores(*self._inputs(self.tokenize(images), self.grid(*images.shape[-2:])))

    def chosen(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b k"]:
        """The number of the patch that each of the k heads chooses; heads may agree."""
        return self.part_scores(images).argmax(-1)

    def boxes(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b k 4"]:
        """Top, left, bottom, right of the chosen patches, in pixels of the images."""
        numbers, columns = self.chosen(images), self.grid(*images.shape[-2:])[1]
        corner = torch.stack([numbers // columns, numbers % columns], dim=-1) * self.stride
        return torch.cat([corner, corner + self.patch], dim=-1)

    @torch.no_grad()
    def attention(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b heads _n _n"]]:
        """As for any transformer; the last layer's map is that of the tokens it receives."""
        requested = chosen_layers(layers, len(self.blocks), self.name)
        inputs, where = self._inputs(self.tokenize(images), self.grid(*images.shape[-2:]))
        seen = [(x, where) for x in inputs[:-1]]
        seen.append(self._last_input(inputs, where, self._scores(inputs, where).argmax(-1)))
        blocks: Any = self.blocks
        return [blocks[i].attn.weights(norm(seen[i][0], blocks[i].norm1), seen[i][1]) for i in requested]

    @torch.no_grad()
    def pooled_attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads n"]:
        """The class token's attention in the last layer, which is 0 for patches that were not chosen."""
        (maps,), numbers = self.attention(images), self.chosen(images)
        rows, columns = self.grid(*images.shape[-2:])
        b, heads = maps.shape[:2]
        spread = maps.new_zeros(b, heads, rows * columns)
        return spread.scatter_add(2, numbers[:, None].expand(-1, heads, -1), maps[:, :, 0, self.prefix :])


class PartsViT(Parts, ViT):
    """A ViT, DeiT or DINOv2 that chooses parts."""


class PartsEva(Parts, Eva):
    """A BEiT, EVA or DINOv3 with a class token that chooses parts."""


def attention_product(maps: Iterable[Float[Tensor, "b h n n"]]) -> Float[Tensor, "b h n"]:
    """The class token's row of A_{L-1} ... A_2 A_1, from the maps A_{L-1}, ..., A_1 in this order.

    [He 2021, part selection module]. Neither identity nor renormalisation is added, unlike in rollout. A row
    times a matrix is n^2 products where a matrix times a matrix is n^3.
    """
    row: Tensor | None = None
    for each in maps:
        row = each[:, :, :1] if row is None else row @ each
    assert row is not None, "there are blocks before the last"
    return row[:, :, 0]
