"""omma's kernels with their derivatives, and when they can be used."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omma.ops.cpu import library, operators  # noqa: F401 (registers the operators)


def fits(*tensors: Tensor) -> bool:
    """Do the kernels take these tensors, and are there kernels on this machine?"""
    return (
        all(t.device.type == "cpu" and t.dtype == torch.bfloat16 for t in tensors)
        and not torch.compiler.is_compiling()
        and library.load()[0] is not None
    )


class Gelu(torch.autograd.Function):
    """x -> gelu(x), of any shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return torch.ops.omma.gelu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return torch.ops.omma.gelu_backward(grad.contiguous(), x)


class Norm(torch.autograd.Function):
    """x, scale, shift, eps -> layer norm over the last dimension; all sums in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out, mean, inverse = torch.ops.omma.norm(x, scale, shift, eps)
        ctx.save_for_backward(x, scale, mean, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, scale, mean, inverse = ctx.saved_tensors
        return *torch.ops.omma.norm_backward(grad.contiguous(), x, scale, mean, inverse), None


class Attend(torch.autograd.Function):
    """qkv [b, n, 3d], shapes, heads -> attention [b, n, d] of each sequence with itself.

    shapes: b, n; for sequences of several lengths packed in [1, t, 3d], b, n of each length in turn.

    The backward pass recomputes the weights from the log of each query's sum of exponentials, as
    FlashAttention does [Dao 2022, arXiv 2205.14135]; here the weights of a head fit into a core's cache.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, shapes: Sequence[int], heads: int) -> Tensor:
        qkv = qkv.contiguous()
        out, log_sum = torch.ops.omma.attend(qkv, shapes, heads, True)
        ctx.save_for_backward(qkv, out, log_sum)
        ctx.shapes, ctx.heads = shapes, heads
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        arguments = (*ctx.saved_tensors, ctx.shapes, ctx.heads)
        return torch.ops.omma.attend_backward(grad.contiguous(), *arguments), None, None
