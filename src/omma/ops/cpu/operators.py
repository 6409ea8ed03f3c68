"""omma's kernels as torch operators, so that profilers and counters see them; all tensors are contiguous."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from omma.ops.cpu.library import call

# layout of `weight_gradient`'s operands: rows, or one in tiles of 32 x 32 (kernels/branches.cpp)
NONE, GRAD, GELU_OF_INPUT = 0, 1, 4

_registry = torch.library.Library("omma", "DEF")
_registry.define("gelu(Tensor x) -> Tensor")
_registry.define("gelu_backward(Tensor grad, Tensor x) -> Tensor")
_registry.define("norm(Tensor x, Tensor scale, Tensor shift, float eps) -> (Tensor, Tensor, Tensor)")
_registry.define(
    "norm_backward(Tensor grad, Tensor x, Tensor scale, Tensor mean, Tensor inverse)"
    " -> (Tensor, Tensor, Tensor)"
)
_registry.define("weight_gradient(Tensor grad, Tensor x, bool bias, int lie=0) -> (Tensor, Tensor?)")
_registry.define("attend(Tensor qkv, int[] shapes, int heads, bool train) -> (Tensor, Tensor?)")
_registry.define(
    "attend_backward(Tensor grad, Tensor qkv, Tensor result, Tensor log_sum, int[] shapes, int heads)"
    " -> Tensor"
)
_registry.define(
    "mlp(Tensor x, Tensor scale, Tensor shift, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? gamma,"
    " Tensor? onto, float eps, bool train) -> (Tensor, Tensor?, Tensor?, Tensor?)"
)
_registry.define(
    "mlp_backward(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor mean, Tensor inverse, Tensor u,"
    " Tensor w1, Tensor w2, Tensor? onto) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_registry.define(
    "mix(Tensor x, Tensor scale, Tensor shift, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? gamma,"
    " Tensor? onto, float eps, int[] shapes, int heads, bool train)"
    " -> (Tensor, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?)"
)
_registry.define(
    "mix_backward(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor mean, Tensor inverse, Tensor qkv,"
    " Tensor result, Tensor log_sum, Tensor w1, Tensor w2, Tensor? onto, int[] shapes, int heads)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _operator(function: Any) -> Any:
    """Registers the function, by its name, as the operator's CPU implementation."""
    _registry.impl(function.__name__.lstrip("_"), function, "CPU")
    return getattr(torch.ops.omma, function.__name__.lstrip("_"))


@_operator
def _gelu(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    call("gelu", x.numel(), x, out)
    return out


@_operator
def _gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    call("gelu_backward", x.numel(), grad, x, out)
    return out


@_operator
def _norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    d = x.shape[-1]
    n = x.numel() // d
    out, mean = torch.empty_like(x), x.new_empty(n, dtype=torch.float32)
    inverse = torch.empty_like(mean)
    call("norm", n, d, eps, x, scale, shift, out, mean, inverse)
    return out, mean, inverse


@_operator
def _norm_backward(
    grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dscale, dshift = torch.empty_like(x), torch.empty_like(scale), torch.empty_like(scale)
    call("norm_backward", mean.numel(), x.shape[-1], grad, x, scale, mean, inverse, dx, dscale, dshift)
    return dx, dscale, dshift


@_operator
def _weight_gradient(grad: Tensor, x: Tensor, bias: bool, lie: int = NONE) -> tuple[Tensor, Tensor | None]:
    n, o = min(len(grad), len(x)), grad.shape[1]
    out = grad.new_empty(o, x.shape[1])
    sums = grad.new_empty(o) if bias else None
    call("weight_gradient", n, o, x.shape[1], grad, x, lie, out, sums)
    return out, sums


def _lengths(shapes: Sequence[int], *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """b, n and the rows of each tensor [t, ...] for the samples of each length; shapes: b, n, b, n, ..."""
    counts = [b * n for b, n in zip(shapes[::2], shapes[1::2], strict=True)]
    rows = ([None] * len(counts) if t is None else t.split(counts) for t in tensors)
    return zip(shapes[::2], shapes[1::2], *rows, strict=True)


@_operator
def _attend(qkv: Tensor, shapes: Sequence[int], heads: int, train: bool) -> tuple[Tensor, Tensor | None]:
    rows = qkv.flatten(0, 1)
    t, width = rows.shape
    out = qkv.new_empty(t, width // 3)
    log_sum = qkv.new_empty(t, heads, dtype=torch.float32) if train else None
    for b, n, *tensors_of_length in _lengths(shapes, rows, out, log_sum):
        call("attend", b, n, heads, width // (3 * heads), *tensors_of_length)
    return out.view(*qkv.shape[:2], width // 3), log_sum


@_operator
def _attend_backward(
    grad: Tensor, qkv: Tensor, result: Tensor, log_sum: Tensor, shapes: Sequence[int], heads: int
) -> Tensor:
    out = torch.empty_like(qkv)
    rows = (x.flatten(0, 1) for x in (grad, qkv, result))
    for b, n, *tensors_of_length in _lengths(shapes, *rows, log_sum, out.flatten(0, 1)):
        call("attend_backward", b, n, heads, qkv.shape[-1] // (3 * heads), *tensors_of_length)
    return out


SPARE = 31  # rows after the last that kernels, which multiply 32 rows at a time, read but do not use


def _whole(rows: int) -> int:
    return (rows + SPARE) // (SPARE + 1) * (SPARE + 1)


def _with_spare(like: Tensor, rows: int, width: int) -> Tensor:
    return like.new_empty(rows + SPARE, width)[:rows]


@_operator
def _mlp(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gamma: Tensor | None,
    onto: Tensor | None,
    eps: float,
    train: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    (h, d), n = w1.shape, x.numel() // w1.shape[1]
    y = torch.empty_like(x)
    u, mean, inverse = None, None, None
    if train:
        u, mean, inverse = x.new_empty(_whole(n), h), *x.new_empty(2, n, dtype=torch.float32)
    call("mlp", n, d, h, eps, x, scale, shift, w1, b1, w2, b2, gamma, onto, y, u, mean, inverse)
    return y, u, mean, inverse


@_operator
def _mlp_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    inverse: Tensor,
    u: Tensor,
    w1: Tensor,
    w2: Tensor,
    onto: Tensor | None,
) -> tuple[Tensor, ...]:
    h, d, n = u.shape[1], x.shape[-1], len(mean)
    dx, du, again = torch.empty_like(x), torch.empty_like(u), x.new_empty(n, d)
    dscale, dshift = torch.empty_like(scale), torch.empty_like(shift)
    inputs = (grad, x, scale, shift, mean, inverse, u, w1, w2, onto)
    call("mlp_backward", n, d, h, *inputs, dx, du, again, dscale, dshift)
    return dx, du, again, dscale, dshift


@_operator
def _mix(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gamma: Tensor | None,
    onto: Tensor | None,
    eps: float,
    shapes: Sequence[int],
    heads: int,
    train: bool,
) -> tuple[Tensor | None, ...]:
    d, t, numbers = x.shape[-1], x.numel() // x.shape[-1], torch.tensor(shapes)
    y = torch.empty_like(x)
    saved = [None] * 5
    if train:
        qkv, out = x.new_empty(t, 3 * d), _with_spare(x, t, d)
        log_sum, mean, inverse = (
            x.new_empty(t, heads, dtype=torch.float32),
            *x.new_empty(2, t, dtype=torch.float32),
        )
        saved = [qkv, out, log_sum, mean, inverse]
    inputs = (x, scale, shift, w1, b1, w2, b2, gamma, onto)
    call("mix", len(shapes) // 2, numbers, d, heads, eps, *inputs, y, *saved)
    return y, *saved


@_operator
def _mix_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    inverse: Tensor,
    qkv: Tensor,
    result: Tensor,
    log_sum: Tensor,
    w1: Tensor,
    w2: Tensor,
    onto: Tensor | None,
    shapes: Sequence[int],
    heads: int,
) -> tuple[Tensor, ...]:
    (t, width), numbers = qkv.shape, torch.tensor(shapes)
    dx, dqkv, again = torch.empty_like(x), _with_spare(x, t, width), torch.empty_like(result)
    dscale, dshift = torch.empty_like(scale), torch.empty_like(shift)
    inputs = (grad, x, scale, shift, mean, inverse, qkv, result, log_sum, w1, w2, onto)
    call(
        "mix_backward", len(shapes) // 2, numbers, width // 3, heads, *inputs, dx, dqkv, again, dscale, dshift
    )
    return dx, dqkv, again, dscale, dshift
