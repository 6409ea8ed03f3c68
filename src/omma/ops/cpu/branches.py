"""The two branches of a pre-norm transformer block, each in one kernel where omma's fit (ops/cpu/native.py).

A thread takes some samples through a whole branch, norm to sum, and what is between the layers stays in its
cache. The backward pass keeps the branch's input, the GELU's or attention's, and makes the rest anew.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omma.ops.attention import IN_CACHE
from omma.ops.cpu import native
from omma.ops.linear import Linear
from omma.ops.packing import Shapes

SHARED = 8  # samples from which threads share them rather than the work on each


def mlp(
    x: Float[Tensor, "*b d"],
    norm: nn.LayerNorm,
    first: nn.Linear,
    second: nn.Linear,
    gamma: Float[Tensor, "d"] | None = None,
    add: bool = True,
) -> Float[Tensor, "*b d"]:
    """gamma * second(gelu(first(norm(x)))), and x where `add`; of what `takes_mlp` takes."""
    weights = (norm.weight, norm.bias, first.weight, first.bias, second.weight, second.bias, gamma)
    return _Mlp.apply(x, *weights, norm.eps, add, torch.is_grad_enabled())  # pyright: ignore


def mix(
    x: Float[Tensor, "b n d"],
    norm: nn.LayerNorm,
    first: nn.Linear,
    second: nn.Linear,
    heads: int,
    shapes: Shapes,
    gamma: Float[Tensor, "d"] | None = None,
    add: bool = True,
) -> Float[Tensor, "b n d"]:
    """gamma * second(attention(first(norm(x)))), and x where `add`; of what `takes_mix` takes.

    shapes: how many sequences x holds, and how long; of each length where several are packed in [1, t, d].
    """
    weights = (norm.weight, norm.bias, first.weight, first.bias, second.weight, second.bias, gamma)
    numbers = [number for shape in shapes for number in shape]
    train = torch.is_grad_enabled()
    return _Mix.apply(x, *weights, norm.eps, numbers, heads, add, train)  # pyright: ignore


def takes_mlp(
    x: Tensor,
    norm: nn.Module,
    first: nn.Module,
    second: nn.Module,
    gamma: Tensor | None,
    *others: nn.Module,
) -> bool:
    """Can `mlp` stand for these and for `others`, which are around them?"""
    return _ours(x, norm, first, second, gamma, *others) and _even(x.shape[-1], _width(first))


def takes_mix(
    x: Tensor,
    norm: nn.Module,
    first: nn.Module,
    second: nn.Module,
    heads: int,
    shapes: Shapes,
    gamma: Tensor | None,
    *others: nn.Module,
) -> bool:
    """Can `mix`? Threads must have samples to share, and a head's weights fit into a cache."""
    return (
        _ours(x, norm, first, second, gamma, *others)
        and x.shape[-1] % heads == 0
        and _even(x.shape[-1] // heads)
        and sum(b for b, _ in shapes) >= SHARED
        and max(n for _, n in shapes) <= IN_CACHE
    )


def _width(layer: nn.Module) -> int:
    return cast(nn.Linear, layer).out_features  # `_ours` has seen that it is one


def _even(*widths: int) -> bool:
    return all(width % 32 == 0 for width in widths)


def _ours(
    x: Tensor,
    norm: nn.Module,
    first: nn.Module,
    second: nn.Module,
    gamma: Tensor | None,
    *others: nn.Module,
) -> bool:
    """Are these as the kernels want them, and would nobody miss being called?

    Not where a layer of another class was put in one's place, or somebody listens to one.
    """
    if type(norm) is not nn.LayerNorm or type(first) is not Linear or type(second) is not Linear:
        return False
    found = (norm.weight, norm.bias, first.weight, first.bias, second.weight, second.bias, gamma)
    weights = [w for w in found if w is not None]
    return (
        norm.bias is not None
        and native.fits(x, *weights)
        and x.numel() > 0
        and all(w.is_contiguous() for w in weights)
        and not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in (norm, first, second, *others)
        )
    )


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        *layers, eps, add, train = given
        x = x.contiguous()
        y, *kept = torch.ops.omma.mlp.default(x, *layers, x if add else None, eps, train)
        ctx.save_for_backward(x, *layers, *kept)
        ctx.add = add
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, scale, shift, w1, b1, w2, b2, gamma, u, mean, inverse = ctx.saved_tensors
        grad = grad.contiguous()
        onto = grad if ctx.add else None
        dx, du, again, *of_norm = torch.ops.omma.mlp_backward.default(
            grad, x, scale, shift, mean, inverse, u, w1, _scaled(w2, gamma), onto
        )
        first = _first(ctx, du, again, native.GRAD, b1)
        second = _second(ctx, grad, u, native.GELU_OF_INPUT, w2, b2, gamma)
        return dx, *of_norm, *first, *second, None, None, None


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        *layers, eps, shapes, heads, add, train = given
        x = x.contiguous()
        y, *kept = torch.ops.omma.mix.default(x, *layers, x if add else None, eps, shapes, heads, train)
        ctx.save_for_backward(x, *layers, *kept)
        ctx.shapes, ctx.heads, ctx.add = shapes, heads, add
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, scale, shift, w1, b1, w2, b2, gamma, qkv, mixed, log_sum, mean, inverse = ctx.saved_tensors
        grad = grad.contiguous()
        onto = grad if ctx.add else None
        dx, dqkv, again, *of_norm = torch.ops.omma.mix_backward.default(
            *(grad, x, scale, shift, mean, inverse, qkv, mixed, log_sum, w1, _scaled(w2, gamma), onto),
            *(ctx.shapes, ctx.heads),
        )
        first = _first(ctx, dqkv, again, native.NONE, b1)
        second = _second(ctx, grad, mixed, native.NONE, w2, b2, gamma)
        return dx, *of_norm, *first, *second, None, None, None, None, None


def _scaled(weight: Tensor, gamma: Tensor | None) -> Tensor:
    return weight if gamma is None else weight * gamma[:, None]


def _first(ctx: Any, grad: Tensor, x: Tensor, lie: int, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the first layer's weight and bias, from its own and its input, which lie so."""
    if not any(ctx.needs_input_grad[3:5]):
        return None, None
    return torch.ops.omma.weight_gradient.default(grad, x, bias is not None, lie)


def _second(
    ctx: Any, grad: Tensor, x: Tensor, lie: int, weight: Tensor, bias: Tensor | None, gamma: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of the second layer's weight and bias, and of gamma.

    The layer's value v = x w^T + b was not kept. With p = grad^T x and s the sums of grad, the gradients of w
    and b are gamma p and gamma s; gamma's, the sums of grad v, are the sums of w's rows times p's, and b s.
    """
    if not any(ctx.needs_input_grad[5:8]):
        return None, None, None
    rows = grad.view(-1, grad.shape[-1])
    p, s = torch.ops.omma.weight_gradient.default(rows, x, bias is not None, lie)
    if gamma is None:
        return p, s, None
    of_gamma = (weight.float() * p.float()).sum(1)
    if bias is not None:
        of_gamma, s = of_gamma + bias.float() * s.float(), s * gamma
    return p * gamma[:, None], s, of_gamma.to(gamma.dtype)
