"""Multiply-adds of a network, counted without computing them, and FLOPs of running code."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm)  # their last two arguments are the matrices
SAME_SHAPE = (aten.gelu, aten.silu, aten._softmax, aten._safe_softmax)  # as their first argument


def multiply_adds(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of matrix products and convolutions for an input of this shape, as papers count them.

    Norms, activations, softmax and Fourier transforms are not counted. `network` is on the meta device, in
    evaluation mode (`backbones.outline`), so that the count is the same on any machine, without memory.
    """
    with torch.no_grad(), _Counter() as counter:
        network(torch.empty(*shape, device="meta"))
    return counter.total


class _Counter(TorchDispatchMode):
    """Counts as torch's FlopCounterMode, in a fifth of the time: it creates most results by their shape."""

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
        if kind in SAME_SHAPE:
            return torch.empty_like(args[0])
        if kind is aten.native_layer_norm:
            x: Tensor = args[0]
            return torch.empty_like(x), x.new_empty(*x.shape[:-1], 1), x.new_empty(*x.shape[:-1], 1)
        out = func(*args, **(kwargs or {}))
        if kind in flop_registry:  # convolutions; torch counts multiplications and additions separately
            self.total += flop_registry[kind](*args, **(kwargs or {}), out_val=out) // 2
        return out


class Flops(TorchDispatchMode):
    """A context that counts the FLOPs of matrix products and convolutions, forward and backward.

    `total` counts additions and multiplications separately, so it is twice `multiply_adds`. Elementwise
    operations are not counted, nor is recomputation within a kernel (attention's scores in its backward
    pass). Layers under activation checkpointing count each time they run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _formula(func) is None and func is not torch.ops.prim.device.default:
            with self:  # composite operators, which inference mode does not decompose
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.total += _flops(func, args, kwargs, out)
        return out


def _formula(func: Any) -> Callable[..., int] | None:
    """An operator's FLOPs as a function of its arguments and `out_val`; None if it is not counted."""
    return FORMULAS.get(func.name()) or flop_registry.get(func.overloadpacket)


def _flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int:
    formula = _formula(func)
    if formula is None:
        return 0
    count = formula(*args, **kwargs, out_val=out)
    name = func.name()
    if "attention" in name and name.endswith("_backward"):
        return count * 4 // 5  # the fifth of torch's products recomputes the scores
    return count


def _linear(x: Tensor, weight: Tensor, *_: Any, out_val: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def _linear_backward(x: Tensor, grad: Tensor, weight: Tensor, mask: Sequence[bool], *, out_val: Any) -> int:
    """mask: which gradients of input, weight and bias are computed."""
    return 2 * grad.numel() * weight.shape[1] * sum(mask[:2])


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, out_val: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


def _weight_gradient(grad: Tensor, x: Tensor, *_: Any, out_val: Any) -> int:
    return 2 * grad.numel() * x.shape[-1]


def _attend(qkv: Tensor, shapes: Sequence[int], *_: Any, out_val: Any) -> int:
    return _attend_of_width(qkv.shape[-1] // 3, shapes)


def _attend_of_width(dim: int, shapes: Sequence[int]) -> int:
    """shapes: number and length of the sequences, for each length in turn."""
    return 2 * 2 * dim * sum(b * n * n for b, n in zip(shapes[::2], shapes[1::2], strict=True))


def _attend_backward(
    grad: Tensor, qkv: Tensor, result: Tensor, log_sum: Tensor, shapes: Sequence[int], *_: Any, out_val: Any
) -> int:
    return 2 * _attend(qkv, shapes, out_val=None)


def _branch(
    x: Tensor, scale: Tensor, shift: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, *_: Any, out_val: Any
) -> int:
    """A branch's two linear layers."""
    return 2 * x.numel() // x.shape[-1] * (w1.numel() + w2.numel())


def _mlp_backward(grad: Tensor, *args: Any, out_val: Any) -> int:
    *_, w1, w2, _ = args
    return _branch(grad, w1, w1, w1, None, w2, out_val=None)


def _mix(x: Tensor, *args: Any, out_val: Any) -> int:
    return _branch(x, *args, out_val=None) + _attend_of_width(x.shape[-1], args[-3])


def _mix_backward(grad: Tensor, *args: Any, out_val: Any) -> int:
    qkv, *_, w1, w2, _, shapes, _ = args[5:]
    return _branch(grad, w1, w1, w1, None, w2, out_val=None) + 2 * _attend(qkv, shapes, out_val=None)


# operators that torch's counter lacks: oneDNN's linear layers, omma's kernels (ops/cpu/operators.py),
# linear layers and attention on Apple's GPUs, and in older versions attention on CPUs
FORMULAS: dict[str, Callable[..., int]] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
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
