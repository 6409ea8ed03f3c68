"""Multiply-adds of a network, counted without computing them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm)  # their last two arguments are the matrices
ALIKE = (aten.gelu, aten.silu, aten._softmax, aten._safe_softmax)  # the result has the argument's shape


def multiply_adds(network: nn.Module, shape: Sequence[int]) -> int:
    """Those of products of matrices and of convolutions, for an input of this shape, as papers count.

    What goes over numbers one by one (norms, activations, softmax, Fourier transforms) is left out. `network`
    lies on the meta device, in evaluation mode (`backbones.outline`): the same path is counted on any
    machine, and nothing is allocated.
    """
    with torch.no_grad(), _Counter() as counter:
        network(torch.empty(*shape, device="meta"))
    return counter.total


class _Counter(TorchDispatchMode):
    """Counts as torch's FlopCounterMode does, in a fifth of the time: of most results it makes the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kind = func.overloadpacket
        if kind in PRODUCTS:
            a, b = args[-2:]
            self.total += a.numel() * b.shape[-1]
            return a.new_empty(*a.shape[:-1], b.shape[-1])
        if kind in ALIKE:
            return torch.empty_like(args[0])
        if kind is aten.native_layer_norm:
            x: Tensor = args[0]
            return torch.empty_like(x), x.new_empty(*x.shape[:-1], 1), x.new_empty(*x.shape[:-1], 1)
        out = func(*args, **(kwargs or {}))
        if kind in flop_registry:  # convolutions; torch counts products and sums apart
            self.total += flop_registry[kind](*args, **(kwargs or {}), out_val=out) // 2
        return out
