"""The two branches of a pre-norm transformer block, each computed by one kernel (docs/adr/0014).

A thread takes a few samples through a whole branch, from the norm to the sum, and intermediate results stay
in its cache. The inputs of the branch and of the GELU or attention are saved for the backward pass, which
recomputes the rest.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omma.ops.attention import IN_CACHE
from omma.ops.cpu import native, operators
from omma.ops.linear import Linear
from omma.ops.packing import Shapes

MIN_SAMPLES = 8  # with fewer, threads share the work on each sample instead of the samples


def mlp(
    x: Float[Tensor, "*b d"],
    norm: nn.LayerNorm,
    first: nn.Linear,
    second: nn.Linear,
    gamma: Float[Tensor, "d"] | None = None,
    add: bool = True,
) -> Float[Tensor, "*b d"]:
    """gamma * second(gelu(first(norm(x)))), plus x where `add`; `takes_mlp` must hold of the arguments."""
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
    """gamma * second(attention(first(norm(x)))), plus x where `add`; `takes_mix` must hold of the arguments.

    shapes: number and length of the sequences in x, for each length where several are packed in [1, t, d].
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
    """Can `mlp` replace these modules and `others`, which contain or scale them?"""
    return _replaceable(x, norm, first, second, gamma, *others) and _whole_tiles(x.shape[-1], _width(first))


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
    """Can `mix` replace them? Threads need samples to share, and a head's weights must fit into a cache."""
    return (
        _replaceable(x, norm, first, second, gamma, *others)
        and x.shape[-1] % heads == 0
        and _whole_tiles(x.shape[-1] // heads)
        and sum(b for b, _ in shapes) >= MIN_SAMPLES
        and max(n for _, n in shapes) <= IN_CACHE
    )


def _width(layer: nn.Module) -> int:
    return cast(nn.Linear, layer).out_features  # `_replaceable` has checked the type


def _whole_tiles(*widths: int) -> bool:
    return all(width % 32 == 0 for width in widths)


def _replaceable(
    x: Tensor,
    norm: nn.Module,
    first: nn.Module,
    second: nn.Module,
    gamma: Tensor | None,
    *others: nn.Module,
) -> bool:
    """Do the kernels take these, and does nothing depend on the modules being called?

    A layer of another class or one with hooks must be called.
    """
    if type(norm) is not nn.LayerNorm or type(first) is not Linear or type(second) is not Linear:
        return False
    tensors = (norm.weight, norm.bias, first.weight, first.bias, second.weight, second.bias, gamma)
    weights = [w for w in tensors if w is not None]
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
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        *layers, eps, add, train = arguments
        x = x.contiguous()
        y, *saved = torch.ops.omma.mlp.default(x, *layers, x if add else None, eps, train)
        ctx.save_for_backward(x, *layers, *saved)
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
        first = _first(ctx, du, again, operators.GRAD, b1)
        second = _second(ctx, grad, u, operators.GELU_OF_INPUT, w2, b2, gamma)
        return dx, *of_norm, *first, *second, None, None, None


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        *layers, eps, shapes, heads, add, train = arguments
        x = x.contiguous()
        y, *saved = torch.ops.omma.mix.default(x, *layers, x if add else None, eps, shapes, heads, train)
        ctx.save_for_backward(x, *layers, *saved)
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
        first = _first(ctx, dqkv, again, operators.NONE, b1)
        second = _second(ctx, grad, mixed, operators.NONE, w2, b2, gamma)
        return dx, *of_norm, *first, *second, None, None, None, None, None


def _scaled(weight: Tensor, gamma: Tensor | None) -> Tensor:
    return weight if gamma is None else weight * gamma[:, None]


def _first(ctx: Any, grad: Tensor, x: Tensor, layout: int, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the first layer's weight and bias, from its output's gradient and its input.

    layout: of these two, as in operators.py.
    """
    if not any(ctx.needs_input_grad[3:5]):
        return None, None
    return torch.ops.omma.weight_gradient.default(grad, x, bias is not None, layout)


def _second(
    ctx: Any, grad: Tensor, x: Tensor, layout: int, weight: Tensor, bias: Tensor | None, gamma: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of the second layer's weight and bias, and of gamma.

    The layer's output v = x w^T + b was not saved. With p = grad^T x and s = sum of grad over rows, the
    gradients of w and b are gamma p and gamma s; gamma's is, for each row of w, sum(w p) + b s.
    """
    if not any(ctx.needs_input_grad[5:8]):
        return None, None, None
    rows = grad.view(-1, grad.shape[-1])
    p, s = torch.ops.omma.weight_gradient.default(rows, x, bias is not None, layout)
    if gamma is None:
        return p, s, None
    of_gamma = (weight.float() * p.float()).sum(1)
    if bias is not None:
        of_gamma, s = of_gamma + bias.float() * s.float(), s * gamma
    return p * gamma[:, None], s, of_gamma.to(gamma.dtype)
