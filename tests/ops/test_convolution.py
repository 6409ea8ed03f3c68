"""Gradients of a convolution's kernels as a product equal torch's in fp64 within bf16's rounding."""

import pytest
import torch
from torch import nn

from omma.ops import convolution
from omma.ops.cpu import library

there = pytest.mark.skipif(library.load()[0] is None, reason=library.load()[1])


@there
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "padding", "size"),
    [
        (3, 8, 3, 2, 1, (8, 8)),
        (5, 12, 1, 1, 0, (3, 4)),
        (6, 4, (3, 2), (1, 2), (0, 1), (7, 9)),
        (4, 4, 3, 1, 1, (9, 9)),  # a map too large for the product
    ],
)
def test_gradients(
    channels: int,
    out: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    size: tuple[int, int],
    bias: bool,
) -> None:
    torch.manual_seed(0)
    layer = convolution.Conv2d(channels, out, kernel, stride, padding, bias=bias).bfloat16()
    exact = nn.Conv2d(channels, out, kernel, stride, padding, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(5, channels, *size).bfloat16().contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    found, wanted = layer(x), exact(wide)
    grad = torch.randn(found.shape).bfloat16()
    ours = torch.autograd.grad(found, (x, *layer.parameters()), grad)
    theirs = torch.autograd.grad(wanted, (wide, *exact.parameters()), grad.double())
    for one, other in zip((found, *ours), (wanted, *theirs), strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).norm() / other.norm() < 0.005


@there
def test_small_maps_take_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = convolution.patches
    monkeypatch.setattr(convolution, "patches", lambda *args: calls.append(1) or real(*args))
    layer = convolution.Conv2d(2, 3, 3, padding=1).bfloat16()
    for side in (8, 9):
        layer(torch.randn(1, 2, side, side).bfloat16()).sum().backward()
    assert len(calls) == 1
    layer.weight.requires_grad_(False)
    layer(torch.randn(1, 2, 8, 8).bfloat16().requires_grad_()).sum().backward()
    assert len(calls) == 1
