"""Multiply-adds of a network, counted without computing them, and operations of whatever runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

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
        kwargs = kwargs or {}
        if _formula(func) is None and func is not torch.ops.prim.device.default:
            with self:  # what consists of other operators, which inference mode leaves to us to take apart
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.total += _operations(func, args, kwargs, out)
        return out


def _formula(func: Any) -> Callable[..., int] | None:
    """What gives an operator's operations from its arguments and `out_val`; None where they are none."""
    return OURS.get(func.name()) or flop_registry.get(func.overloadpacket)


def _operations(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int:
    """Of one call."""
    formula = _formula(func)
    if formula is None:
        return 0
    count = formula(*args, **kwargs, out_val=out)
    name = func.name()
    if "attention" in name and name.endswith("_backward"):
        return count * 4 // 5  # torch's five products are four and the scores once more
    return count


def _linear(x: Tensor, weight: Tensor, *_: Any, out_val: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def _linear_backward(x: Tensor, grad: Tensor, weight: Tensor, wanted: Sequence[bool], *, out_val: Any) -> int:
    """Of input and weight, as they are wanted."""
    return 2 * grad.numel() * weight.shape[1] * sum(wanted[:2])


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _weight_gradient(grad: Tensor, x: Tensor, *_: Any, out_val: Any) -> int:
    return 2 * grad.numel() * x.shape[-1]


def _attend(qkv: Tensor, shapes: Sequence[int], *_: Any, out_val: Any) -> int:
    pairs = sum(b * n * n for b, n in zip(shapes[::2], shapes[1::2], strict=True))
    return 2 * 2 * pairs * (qkv.shape[-1] // 3)


def _attend_backward(
    grad: Tensor, qkv: Tensor, result: Tensor, log_sum: Tensor, shapes: Sequence[int], *_: Any, out_val: Any
) -> int:
    return 2 * _attend(qkv, shapes, out_val=None)


def _branch(
    x: Tensor, scale: Tensor, shift: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, *_: Any, out_val: Any
) -> int:
    """Both layers of it."""
    return 2 * x.numel() // x.shape[-1] * (w1.numel() + w2.numel())


def _mlp_backward(grad: Tensor, *known: Any, out_val: Any) -> int:
    *_, w1, w2, _ = known
    return _branch(grad, w1, w1, w1, None, w2, out_val=None)


def _mix(x: Tensor, *known: Any, out_val: Any) -> int:
    shapes = known[-3]
    pairs = sum(b * n * n for b, n in zip(shapes[::2], shapes[1::2], strict=True))
    return _branch(x, *known, out_val=None) + 2 * 2 * pairs * x.shape[-1]


def _mix_backward(grad: Tensor, *known: Any, out_val: Any) -> int:
    qkv, *_, w1, w2, _, shapes, _ = known[5:]
    return _branch(grad, w1, w1, w1, None, w2, out_val=None) + 2 * _attend(qkv, shapes, out_val=None)


# what torch's own counter leaves out: oneDNN's linear layers, our kernels (ops/cpu/operators.py), and linear
# layers and attention on Apple's GPUs
OURS: dict[str, Callable[..., int]] = {
    "mkldnn::_linear_pointwise": _linear,
    "omma::weight_gradient": _weight_gradient,
    "omma::mlp": _branch,
    "omma::mlp_backward": _mlp_backward,
    "omma::mix": _mix,
    "omma::mix_backward": _mix_backward,
    "omma::attend": _attend,
    "omma::attend_backward": _attend_backward,
    "aten::linear": _linear,
    "aten::linear_backward": _linear_backward,
    "aten::_scaled_dot_product_attention_math_for_mps": _attention,
}
