"""The pre-norm transformer block [Dosovitskiy 2020, arXiv 2010.11929, eq. 2 and 3], with timm's names."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers.mlp import Mlp
from omma.ops import attention
from omma.ops.attention import Rope
from omma.ops.cpu.residual import Layers, LayerScale, residual
from omma.ops.linear import Linear
from omma.ops.norm import DeferredNorm
from omma.ops.packing import Shapes, pack, unpack


@dataclass(frozen=True)
class Size:
    """Layers, width, heads, and how many times as wide the MLP is."""

    depth: int
    dim: int
    heads: int
    ratio: float = 4


class Where(NamedTuple):
    """Where the tokens of a sequence lie in the image, with what attention derives from it."""

    grid: tuple[int, int]  # rows and columns of the whole image's patches
    prefix: int = 0  # tokens before the patches; they have no place in the grid
    keep: Int[Tensor, "b m"] | None = None  # numbers of the patches that are left; None: all, row by row
    rope: Rope | None = None
    bias: Float[Tensor, "b h n n"] | None = None  # added to the scores in every layer
    pairs: Int[Tensor, "*b n n"] | None = None  # each pair's entry in a relative bias table ...
    home: tuple[int, int] | None = None  # ... and the grid that the table was made for

    @property
    def shapes(self) -> None:
        """None: nothing is packed."""

    @property
    def plain(self) -> bool:
        """Does attention depend on the tokens alone, and not on their places?"""
        return self.rope is None and self.bias is None

    def lengths(self, x: Float[Tensor, "b n d"]) -> Shapes:
        """Number and length of the sequences in x."""
        return ((x.shape[0], x.shape[1]),)

    def select(self, rows: Sequence[Int[Tensor, "_r"]]) -> "Where":
        """The same for the chosen samples of the batch."""
        (chosen,) = rows
        keep = None if self.keep is None else self.keep[chosen]
        rope, bias = self.rope, self.bias
        if rope is not None and rope.cos.ndim > 2:
            rope = rope._replace(cos=rope.cos[chosen], sin=rope.sin[chosen])
        if bias is not None and len(bias) > 1:
            bias = bias[chosen]
        pairs = self.pairs
        if pairs is not None and pairs.ndim > 2:
            pairs = pairs[chosen]
        return self._replace(keep=keep, rope=rope, bias=bias, pairs=pairs)


NOWHERE = Where((0, 0))  # for sequences of tokens that have no places


class Packed(NamedTuple):
    """`Where` for sequences of several lengths packed in one tensor (ops/packing.py)."""

    shapes: Shapes
    each: Sequence[Where]  # one for each length

    @property
    def plain(self) -> bool:
        return all(w.plain for w in self.each)

    def lengths(self, x: Float[Tensor, "1 t d"]) -> Shapes:
        return self.shapes

    def select(self, rows: Sequence[Int[Tensor, "_r"]]) -> "Packed":
        """The same for the chosen samples of each length."""
        shapes = tuple((len(r), n) for r, (_, n) in zip(rows, self.shapes, strict=True))
        return Packed(shapes, tuple(w.select([r]) for r, w in zip(rows, self.each, strict=True)))


def per_length(
    mix: Callable[[Any, Tensor, Where], Tensor],
) -> Callable[[Any, Float[Tensor, "b n i"], Where | Packed], Float[Tensor, "b n o"]]:
    """Decorates a method that mixes the tokens of sequences: it receives packed ones one length at a time."""

    @functools.wraps(mix)
    def each(self: Any, x: Tensor, where: Where | Packed) -> Tensor:
        if isinstance(where, Where):
            return mix(self, x, where)
        return pack([mix(self, t, w) for t, w in zip(unpack(x, where.shapes), where.each, strict=True)])

    return each


def attend(
    qkv: Float[Tensor, "b n 3d"],
    heads: int,
    where: Where | Packed,
    bias: Callable[[Where], Tensor | None] = lambda where: where.bias,
) -> Float[Tensor, "b n d"]:
    """Softmax attention of tokens at the given places."""
    if isinstance(where, Where):
        return attention.attend(qkv, heads, where.rope, bias(where))
    ropes, biases = [w.rope for w in where.each], [bias(w) for w in where.each]
    return attention.attend_packed(qkv, heads, where.shapes, ropes, biases)


class Attention(nn.Module):
    """Multi-head self-attention; a subclass mixes the tokens in another way in `_mix`."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def _mix(self, qkv: Float[Tensor, "b n 3d"], where: Where | Packed) -> Float[Tensor, "b n d"]:
        return attend(qkv, self.heads, where)

    def forward(
        self, x: Float[Tensor, "b n d"] | DeferredNorm, where: Where | Packed = NOWHERE
    ) -> Float[Tensor, "b n d"]:
        return self.proj(self._mix(self.qkv(x), where))

    def branch_layers(self) -> Layers:
        between = "attention" if type(self) is Attention else "other"
        return Layers((self.qkv,), self.proj, between, self.heads)

    def weights(self, x: Float[Tensor, "b n d"], where: Where = NOWHERE) -> Float[Tensor, "b h n n"]:
        """How much each token attends to each."""
        q, k, _ = attention.split(self.qkv(x), self.heads)
        if where.rope is not None:
            q, k = where.rope.turn(q), where.rope.turn(k)
        return attention.weights(q, k, where.bias)


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), each branch scaled where `layer_scale` is given.

    attn: a module that takes normalised tokens and where they lie; mlp: one that takes normalised tokens.
    Sequences of several lengths come packed, as [1, t, d]. drop_exact: see `ops.depth.chosen`.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        eps: float = 1e-6,
        drop_exact: bool = False,
    ) -> None:
        super().__init__()
        self.drop_path, self.drop_exact = drop_path, drop_exact
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, x: Float[Tensor, "b n d"], where: Where | Packed = NOWHERE) -> Float[Tensor, "b n d"]:
        """x + drop_path(ls1(attn(norm1(x)))), then x + drop_path(ls2(mlp(norm2(x))))."""
        drop = self.drop_path if self.training else 0.0
        exact = self.drop_exact
        x = residual(x, self.norm1, self.attn, self.ls1, drop, where.shapes, where, exact=exact)
        return residual(x, self.norm2, self.mlp, self.ls2, drop, where.shapes, exact=exact)


def rates(drop_path: float, layers: int, uniform: bool = False) -> list[float]:
    """Rates of stochastic depth: linear from 0 to `drop_path` at the last layer, or `drop_path` in all."""
    return [drop_path if uniform else drop_path * i / max(layers - 1, 1) for i in range(layers)]


def blocks(size: Size, drop_path: float = 0.0) -> nn.Sequential:
    """`size.depth` plain blocks."""

    def block(rate: float) -> Block:
        attn = Attention(size.dim, size.heads)
        return Block(size.dim, attn, Mlp(size.dim, int(size.ratio * size.dim)), rate)

    return nn.Sequential(*(block(rate) for rate in rates(drop_path, size.depth)))


def init_linear(module: nn.Module, draw: Callable[[Tensor], object] | None = None) -> None:
    """0 for biases; weights by `draw`, or a truncated normal of deviation .02 [Dosovitskiy 2020]."""
    if isinstance(module, nn.Linear):
        if draw is None:
            nn.init.trunc_normal_(module.weight, std=0.02)
        else:
            draw(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


__all__ = (
    "Attention",
    "Block",
    "LayerScale",
    "Packed",
    "Size",
    "Where",
    "attend",
    "blocks",
    "init_linear",
    "per_length",
    "rates",
)
