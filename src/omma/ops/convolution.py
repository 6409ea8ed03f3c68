"""Convolutions whose weight gradient is a matrix product where that is faster: bf16 on a CPU.

There, on small maps, oneDNN takes up to ten times as long as the product over all patches.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from omma.ops.cpu import native

SMALL = 64  # most output positions for which the product is faster


class Conv2d(nn.Conv2d):
    """torch's layer with a faster gradient."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o i j"]:
        plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if not plain or isinstance(self.padding, str) or not native.fits(input, self.weight):
            return super().forward(input)
        return _Conv2d.apply(input, self.weight, self.bias, self.stride, self.padding)  # pyright: ignore


def patches(
    x: Float[Tensor, "b c h w"], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Float[Tensor, "p d"]:
    """The input patch of each output position as a row of values, ordered by row, column, channel."""
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph)).contiguous()
    b, h, w, c = x.shape
    i, j = (h - kh) // sh + 1, (w - kw) // sw + 1
    strides = (h * w * c, sh * w * c, sw * c, w * c, 1)
    return x.as_strided((b, i, j, kh, kw * c), strides).reshape(b * i * j, kh * kw * c)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        o, c, kh, kw = weight.shape
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        small = of_weight and grad.shape[-2] * grad.shape[-1] <= SMALL
        dx, dw, db = torch.ops.aten.convolution_backward(
            grad, x, weight, [o] if of_bias else None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1,
            (of_x, of_weight and not small, of_bias and not small),
        )  # fmt: skip
        if small:
            rows = grad.permute(0, 2, 3, 1).reshape(-1, o).contiguous()
            inputs = patches(x, (kh, kw), ctx.stride, ctx.padding)
            dw, db = torch.ops.omma.weight_gradient(rows, inputs, of_bias)
            dw = dw.view(o, kh, kw, c).permute(0, 3, 1, 2)
        return dx, dw, db, None, None
