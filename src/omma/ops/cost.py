"""Multiply-adds of a network, counted without computing them, and operations of whatever runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm)  # their last two arguments are the matrices
ALIKE = (aten.gelu, aten.silu, aten._softmax, aten._safe_softmax)  # the result has the argument's shape
# what torch's own counter leaves out: oneDNN's linear layers, and those and attention on Apple's GPUs
LINEAR = ("mkldnn::_linear_pointwise", "aten::linear")
LINEAR_BACKWARD = "aten::linear_backward"
ATTENTION = "aten::_scaled_dot_product_attention_math_for_mps"


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


class Flops(TorchDispatchMode):
    """Counts what runs while it is entered, forward and backward: products of matrices and convolutions.

    `total` is in operations, an addition and a multiplication apart, so twice what `multiply_adds` counts.
    What goes over numbers one by one is left out, and so is what a kernel computes twice: scores that
    attention's backward pass makes anew to save memory are no progress. (Layers under activation
    checkpointing count as often as they run.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += _operations(func, args, kwargs or {}, out)
        return out


def _operations(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int:
    """Of one call."""
    name, kind = func.name().partition(".")[0], getattr(func, "overloadpacket", None)
    if name in LINEAR:
        return 2 * args[0].numel() * args[1].shape[0]
    if name == LINEAR_BACKWARD:  # of input and weight, as they are wanted
        return 2 * args[1].numel() * args[2].shape[1] * sum(args[3][:2])
    if name == ATTENTION:
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    if kind not in flop_registry:
        return 0
    count = flop_registry[kind](*args, **kwargs, out_val=out)
    if "attention" in name and name.endswith("_backward"):
        return count * 4 // 5  # torch's five products are four and the scores once more
    return count
