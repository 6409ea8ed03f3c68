"""Scaled dot-product attention [Vaswani 2017, arXiv 1706.03762], by whichever route is fastest."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from omma.ops.cpu import native
from omma.ops.packing import Shapes, pack, unpack

WRITTEN_OUT = 1024  # most tokens for which bf16 training on a CPU avoids torch's fused kernel
IN_CACHE = 800  # most tokens for which one head fits into a cache and omma's kernel is the fastest


class Rope(NamedTuple):
    """Rotary positions [Su 2021, arXiv 2104.09864]: each pair of a head's dimensions is rotated by an angle.

    cos, sin: [n, e] or [b, 1, n, e], repeated for both dimensions of a pair; 1 and 0 for tokens without a
    position. paired: pairs are neighbours (0, 1), (2, 3), ...; otherwise halves (0, e/2), (1, e/2 + 1), ...
    """

    cos: Float[Tensor, "*b n e"]
    sin: Float[Tensor, "*b n e"]
    paired: bool

    def turn(self, x: Float[Tensor, "b h n e"], back: bool = False) -> Float[Tensor, "b h n e"]:
        """Queries or keys rotated by their angles; back: the inverse rotation."""
        if self.paired:
            orthogonal = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = x.chunk(2, dim=-1)
            orthogonal = torch.cat([-second, first], dim=-1)
        sin = self.sin.to(x.dtype)
        return torch.addcmul(x * self.cos.to(x.dtype), orthogonal, -sin if back else sin)

    def of(self, keep: Int[Tensor, "b m"], prefix: int) -> "Rope":
        """Angles of the `prefix` tokens before the grid and, in each sample, of the patches in `keep`."""

        def chosen(x: Tensor) -> Tensor:
            front = x[:prefix].expand(len(keep), -1, -1)
            return torch.cat([front, x[prefix:][keep]], dim=1)[:, None]

        return self._replace(cos=chosen(self.cos), sin=chosen(self.sin))


def split(
    qkv: Float[Tensor, "b n 3d"], heads: int, rope: Rope | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [b, heads, n, e]; the first two rotated by `rope`."""
    b, n, width = qkv.shape
    q, k, v = qkv.view(b, n, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    return (q, k, v) if rope is None else (rope.turn(q), rope.turn(k), v)


def merge(x: Float[Tensor, "b h n e"]) -> Float[Tensor, "b n d"]:
    """The heads concatenated again."""
    return x.transpose(1, 2).flatten(2)


def weights(
    q: Float[Tensor, "b h n e"], k: Float[Tensor, "b h m e"], bias: Float[Tensor, "#b h n m"] | None = None
) -> Float[Tensor, "b h n m"]:
    """softmax(q k^T / sqrt(e) + bias), [eq. 1]."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if bias is None else scores + bias.to(scores.dtype)).softmax(-1)


def attend(
    qkv: Float[Tensor, "b n 3d"],
    heads: int,
    rope: Rope | None = None,
    bias: Float[Tensor, "#b h n n"] | None = None,
) -> Float[Tensor, "b n d"]:
    """Multi-head softmax(q k^T / sqrt(e) + bias) v of one sequence with itself.

    By torch's fused kernel, except in bf16 on a CPU: there, up to some hundreds of tokens, its backward pass
    is several times slower than the plain formula, and omma's kernel (ops/cpu/) is faster than both.
    """
    n = qkv.shape[1]
    if rope is None and bias is None and _ours(qkv, heads, n):
        return _native(qkv, heads, [(qkv.shape[0], n)])
    written_out = (
        qkv.device.type == "cpu"
        and qkv.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and n <= WRITTEN_OUT
        and not torch.compiler.is_compiling()
    )
    if written_out:
        return _WrittenOut.apply(qkv, heads, rope, bias)  # pyright: ignore[reportReturnType]
    q, k, v = split(qkv, heads, rope)
    return merge(F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype)))


def attend_packed(
    qkv: Float[Tensor, "1 t 3d"],
    heads: int,
    shapes: Shapes,
    ropes: Sequence[Rope | None],
    biases: Sequence[Float[Tensor, "_b h _n _n"] | None],
) -> Float[Tensor, "1 t d"]:
    """`attend` for sequences of several lengths (ops/packing.py); ropes, biases: one for each length.

    omma's kernel reads them packed; others run once for each length.
    """
    plain = all(x is None for x in (*ropes, *biases))
    if plain and _ours(qkv, heads, max(n for _, n in shapes)):
        return _native(qkv, heads, shapes)
    by_length = zip(unpack(qkv, shapes), ropes, biases, strict=True)
    return pack([attend(x, heads, rope, bias) for x, rope, bias in by_length])


def _ours(qkv: Tensor, heads: int, longest: int) -> bool:
    """Can omma's kernel compute this, and is it the fastest?"""
    return qkv.shape[-1] % (96 * heads) == 0 and longest <= IN_CACHE and native.fits(qkv)


def _native(qkv: Tensor, heads: int, shapes: Shapes) -> Tensor:
    numbers = [number for shape in shapes for number in shape]
    if torch.is_grad_enabled():
        return native.Attend.apply(qkv, numbers, heads)  # pyright: ignore[reportReturnType]
    return torch.ops.omma.attend(qkv.contiguous(), numbers, heads, False)[0]


class _WrittenOut(torch.autograd.Function):
    """The formula and its derivative as batched products of contiguous matrices.

    Under autograd each product, forward and backward, would copy its operands.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, rope: Rope | None, bias: Tensor | None) -> Tensor:
        b, n, width = qkv.shape
        e = width // (3 * heads)
        stacked = torch.stack(split(qkv, heads))
        if rope is not None:
            stacked[0], stacked[1] = rope.turn(stacked[0]), rope.turn(stacked[1])
        q, k, v = stacked.view(3, b * heads, n, e)
        p = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=e**-0.5)
        if bias is not None:
            p.view(b, heads, n, n).add_(bias)
        p = p.softmax(-1)
        ctx.save_for_backward(stacked, p)
        ctx.heads, ctx.rope, ctx.bias = heads, rope, None if bias is None else (bias.shape, bias.dtype)
        return merge((p @ v).view(b, heads, n, e))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor | None]:  # pyright: ignore
        stacked, p = ctx.saved_tensors
        b, n, d = grad.shape
        heads, e = ctx.heads, d // ctx.heads
        q, k, v = stacked.view(3, b * heads, n, e)
        g = grad.view(b, n, heads, e).transpose(1, 2).reshape(b * heads, n, e)
        dp, dv = g @ v.transpose(1, 2), p.transpose(1, 2) @ g
        wide = torch.float32 if n < 32 else p.dtype  # rows are too short for the bf16 kernel's registers
        ds = torch._softmax_backward_data(dp.to(wide), p.to(wide), -1, wide)
        dbias = None
        if ctx.bias is not None and ctx.needs_input_grad[3]:
            shape, dtype = ctx.bias
            scores = ds.view(b, heads, n, n)
            dbias = (scores.sum(0, keepdim=True) if shape[0] == 1 else scores.clone()).to(dtype)
        ds = ds.mul_(e**-0.5).to(p.dtype)
        grads = [x.view(b, heads, n, e) for x in (ds @ k, ds.transpose(1, 2) @ q, dv)]
        if ctx.rope is not None:
            grads[:2] = [ctx.rope.turn(x, back=True) for x in grads[:2]]
        dqkv = torch.stack([x.transpose(1, 2) for x in grads], dim=2).view(b, n, 3 * d)
        return dqkv, None, None, dbias
