"""Scaled dot-product attention [Vaswani 2017, arXiv 1706.03762], by whichever route is fastest."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WRITTEN_OUT = 1024  # tokens up to which bf16 training on a CPU leaves the fused kernel


def split(qkv: Float[Tensor, "b n 3d"], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [b, heads, n, e]."""
    b, n, width = qkv.shape
    q, k, v = qkv.view(b, n, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    return q, k, v


def merge(x: Float[Tensor, "b h n e"]) -> Float[Tensor, "b n d"]:
    """The heads side by side again."""
    return x.transpose(1, 2).flatten(2)


def weights(q: Float[Tensor, "b h n e"], k: Float[Tensor, "b h m e"]) -> Float[Tensor, "b h n m"]:
    """softmax(q k^T / sqrt(e)), [eq. 1]."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)


def attend(qkv: Float[Tensor, "b n 3d"], heads: int) -> Float[Tensor, "b n d"]:
    """Multi-head softmax(q k^T / sqrt(e)) v of one sequence with itself.

    The fused kernel, except for training in bf16 on a CPU: there its backward pass takes several times as
    long as the formula written out, up to some hundreds of tokens.
    """
    written_out = (
        qkv.device.type == "cpu"
        and qkv.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and qkv.shape[1] <= WRITTEN_OUT
    )
    if written_out:
        return _WrittenOut.apply(qkv, heads)  # pyright: ignore[reportReturnType]
    return merge(F.scaled_dot_product_attention(*split(qkv, heads)))


class _WrittenOut(torch.autograd.Function):
    """The formula and its derivative as batched products of contiguous matrices.

    Left to autograd, each product copies its operands anew, and so does each product of its backward pass.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int) -> Tensor:
        b, n, width = qkv.shape
        e = width // (3 * heads)
        stacked = torch.stack(split(qkv, heads)).view(3, b * heads, n, e)
        q, k, v = stacked
        p = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=e**-0.5).softmax(-1)
        ctx.save_for_backward(stacked, p)
        ctx.heads = heads
        return merge((p @ v).view(b, heads, n, e))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        (q, k, v), p = ctx.saved_tensors
        b, n, d = grad.shape
        heads, e = ctx.heads, d // ctx.heads
        g = grad.view(b, n, heads, e).transpose(1, 2).reshape(b * heads, n, e)
        dp, dv = g @ v.transpose(1, 2), p.transpose(1, 2) @ g
        wide = torch.float32 if n < 32 else p.dtype  # rows too short for the bf16 kernel's registers
        ds = torch._softmax_backward_data(dp.to(wide), p.to(wide), -1, wide).mul_(e**-0.5).to(p.dtype)
        parts = [x.view(b, heads, n, e).transpose(1, 2) for x in (ds @ k, ds.transpose(1, 2) @ q, dv)]
        return torch.stack(parts, dim=2).view(b, n, 3 * d), None
