"""Talking-heads attention [Shazeer 2020, arXiv 2003.02436], as CaiT uses it."""

import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from omma.ops import attention
from omma.ops.cpu.residual import Layers
from omma.ops.linear import Linear, linear
from omma.ops.norm import DeferredNorm


def _repeats(maps: Float[Tensor, "bh n n"], heads: int) -> int:
    """The number of chunks to cut each map into before heads are mixed; a divisor of n^2.

    A product with a matrix of 4 x 4 leaves most of a CPU's bf16 units idle. With c chunks the matrix is
    4c x 4c, zero off its blocks' diagonals: more arithmetic, in half the time.
    """
    if maps.device.type != "cpu" or maps.dtype != torch.bfloat16:
        return 1
    return math.gcd(maps.shape[1] * maps.shape[2], max(1, 16 // heads))


def _mix(matrix: Float[Tensor, "h h"], maps: Float[Tensor, "bh n n"]) -> Float[Tensor, "bh n n"]:
    """Linear combinations of each sample's maps: new map g = sum over h of matrix[g, h] map h."""
    heads, c = len(matrix), _repeats(maps, len(matrix))
    if c > 1:
        matrix = torch.kron(matrix.contiguous(), torch.eye(c, dtype=matrix.dtype))
    chunks = maps.view(len(maps) // heads, heads * c, maps.shape[1] * maps.shape[2] // c)
    return torch.bmm(matrix.expand(len(chunks), -1, -1), chunks).view_as(maps)  # matmul would copy the maps


def _mix_grad(
    grad: Float[Tensor, "bh n n"], maps: Float[Tensor, "bh n n"], heads: int
) -> Float[Tensor, "h h"]:
    """Gradient of `_mix` with respect to its matrix."""
    c = _repeats(maps, heads)
    shape = (len(maps) // heads, heads * c, maps.shape[1] * maps.shape[2] // c)
    a, b = (x.view(shape) for x in (grad, maps))
    products = (a @ b.transpose(1, 2)).to(torch.promote_types(maps.dtype, torch.float32)).sum(0)
    return products.view(heads, c, heads, c).diagonal(dim1=1, dim2=3).sum(-1).to(maps.dtype)


def _weights(
    q: Float[Tensor, "bh n e"], k: Float[Tensor, "bh n e"], before: Float[Tensor, "h h"]
) -> tuple[Float[Tensor, "bh n n"], Float[Tensor, "bh n n"]]:
    """Scores q k^T, and the softmax of their mix over sqrt(e)."""
    scores = q @ k.transpose(1, 2)
    return scores, _mix(before * q.shape[-1] ** -0.5, scores).softmax(-1)


def _talk(
    qkv: Float[Tensor, "b n 3d"], before: Tensor, after: Tensor, shift: Tensor
) -> tuple[Float[Tensor, "b n d"], tuple[Tensor, ...]]:
    """Talking-heads attention, and the tensors that its derivative needs.

    shift: the second mix's bias, one number per head. Its contribution is a multiple of the values' sum,
    computed without a pass over the maps.
    """
    heads, (b, n, width) = len(before), qkv.shape
    stacked = torch.stack(attention.split(qkv, heads)).view(3, b * heads, n, width // (3 * heads))
    q, k, v = stacked
    scores, p = _weights(q, k, before)
    w = _mix(after, p)
    constant = v.sum(1, keepdim=True) * shift.repeat(b)[:, None, None]
    out = torch.baddbmm(constant, w, v)
    return attention.merge(out.view(b, heads, n, width // (3 * heads))), (stacked, scores, p, w)


class _Talk(torch.autograd.Function):
    """`_talk` with its derivative as batched products of contiguous matrices.

    idle: the first mix's bias, which the softmax cancels; its gradient is 0.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, before: Tensor, idle: Tensor, after: Tensor, shift: Tensor) -> Tensor:
        out, saved = _talk(qkv, before, after, shift)
        ctx.save_for_backward(before, after, shift, *saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        before, after, shift, stacked, scores, p, w = ctx.saved_tensors
        (b, n, d), heads = grad.shape, len(before)
        e, (q, k, v) = d // heads, stacked
        g = grad.view(b, n, heads, e).transpose(1, 2).reshape(b * heads, n, e)
        g_sum, v_sum = g.sum(1, keepdim=True), v.sum(1, keepdim=True)
        d_shift = (g_sum * v_sum).view(b, heads, e).sum((0, 2))
        dv = torch.baddbmm(g_sum * shift.repeat(b)[:, None, None], w.transpose(1, 2), g)
        dw = g @ v.transpose(1, 2)
        d_after = _mix_grad(dw, p, heads)
        dp = _mix(after.T, dw)
        wide = torch.float32 if n < 32 and p.dtype == torch.bfloat16 else p.dtype  # as in ops/attention.py
        ds = torch._softmax_backward_data(dp.to(wide), p.to(wide), -1, wide).to(p.dtype)
        d_before = _mix_grad(ds, scores, heads) * e**-0.5
        ds = _mix(before.T * e**-0.5, ds)
        grads = [x.view(b, heads, n, e).transpose(1, 2) for x in (ds @ k, ds.transpose(1, 2) @ q, dv)]
        d_qkv = torch.stack(grads, dim=2).view(b, n, 3 * d)
        return d_qkv, d_before, torch.zeros_like(shift), d_after, d_shift


def scaled_linear(
    x: Float[Tensor, "*b i"], layer: nn.Linear, scale: Float[Tensor, "o"] | None
) -> Float[Tensor, "*b o"]:
    """scale * layer(x), with LayerScale's factors folded into weight and bias."""
    if scale is None:
        return layer(x)
    if type(layer) is not Linear:  # an adapter's
        return layer(x) * scale
    return linear(x, layer.weight * scale[:, None], layer.bias * scale)


class TalkingHeads(nn.Module):
    """Self-attention whose heads are mixed before and after the softmax [Shazeer 2020, arXiv 2003.02436]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.proj_l = nn.Linear(heads, heads)
        self.proj_w = nn.Linear(heads, heads)

    def forward(
        self, x: Float[Tensor, "b n d"] | DeferredNorm, scale: Float[Tensor, "d"] | None = None
    ) -> Float[Tensor, "b n d"]:
        qkv, first, second = self.qkv(x), self.proj_l, self.proj_w
        mixes = [t.to(qkv.dtype) for t in (first.weight, first.bias, second.weight, second.bias)]  # autocast
        if torch.is_grad_enabled():
            out = _Talk.apply(qkv, *mixes)
        else:
            out, _ = _talk(qkv, mixes[0], *mixes[2:])
        return scaled_linear(cast(Tensor, out), self.proj, scale)

    def branch_layers(self) -> Layers:
        return Layers((self.qkv,), self.proj, folds_scale=True)

    def weights(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n n"]:
        """softmax of the mixed scores; `proj_w` mixes these before they multiply the values."""
        heads = self.proj_l.in_features
        q, k, _ = (t.flatten(0, 1) for t in attention.split(self.qkv(x), heads))
        return _weights(q, k, self.proj_l.weight)[1].unflatten(0, (-1, heads))
