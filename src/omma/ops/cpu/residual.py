"""The residual branch of a transformer block, in one kernel where one fits: the door to omma's fast paths."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omma.ops import depth
from omma.ops.cpu import branches
from omma.ops.linear import Linear
from omma.ops.norm import norm as apply_norm
from omma.ops.norm import norm_for_linear
from omma.ops.packing import Shapes

BESIDE = "beside"  # a branch's module of this name reads what the branch does; its result is added, unscaled


class Layers(NamedTuple):
    """The layers of a branch. A branch with a method `branch_layers()` can be computed faster.

    between: the operation between `reads`, one linear layer, and `last`; "other" fits no kernel. A subclass
    that computes something else with these layers must override `branch_layers()`.
    folds_scale: the branch takes LayerScale's factors as the argument `scale`.
    """

    reads: tuple[nn.Linear, ...]  # the layers that read the branch's input; nothing else reads it
    last: nn.Linear  # the layer whose result is the branch's
    between: Literal["attention", "gelu", "other"] = "other"
    heads: int = 1
    folds_scale: bool = False


class LayerScale(nn.Module):
    """A learned factor for each dimension of a residual branch [Touvron 2021, arXiv 2103.17239]."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def residual(
    x: Float[Tensor, "b n d"],
    norm: nn.LayerNorm,
    branch: Callable[..., Tensor],
    scale: nn.Module | Float[Tensor, "d"] | None = None,
    drop: float = 0.0,
    shapes: Shapes | None = None,
    *context: Any,
    exact: bool = False,
) -> Float[Tensor, "b n d"]:
    """x + drop_path(scale(branch(norm(x), *context))), plus beside(norm(x)) for a branch with a BESIDE.

    scale: LayerScale, its factors, or None. drop: rate of stochastic depth in [0, 1); 0 outside training.
    exact: drop this share of each batch rather than each sample on its own. shapes: of the sequences that
    are packed in x (ops/packing.py), if any. context: what the branch takes beside its input, e.g. where the
    tokens lie.

    All that makes this fast is decided here: one kernel for the whole branch and its sum (docs/adr/0014),
    scale and shift of the norm folded into the next layer (0004), dropped samples left out (ops/depth.py).
    """
    beside: nn.Module | None = getattr(branch, BESIDE, None)
    if beside is not None:
        out = _dropped(x, norm, branch, scale, drop, shapes, context, exact)
        return out + beside(apply_norm(x, norm))
    return _dropped(x, norm, branch, scale, drop, shapes, context, exact)


def _dropped(
    x: Tensor,
    norm: nn.LayerNorm,
    branch: Callable[..., Tensor],
    scale: nn.Module | Tensor | None,
    drop: float,
    shapes: Shapes | None,
    context: tuple[Any, ...],
    exact: bool,
) -> Tensor:
    if drop == 0:
        return _branch(x, norm, branch, scale, context, add=True)

    def some(part: Tensor, *context: Any) -> Tensor:
        return _branch(part, norm, branch, scale, context, add=False)

    return depth.residual_on_some(x, some, drop, *context, shapes=shapes, exact=exact)


def _branch(
    x: Tensor,
    norm: nn.LayerNorm,
    branch: Callable[..., Tensor],
    scale: nn.Module | Tensor | None,
    context: tuple[Any, ...],
    add: bool,
) -> Tensor:
    """scale(branch(norm(x), *context)), plus x where `add`."""
    layers: Layers | None = branch.branch_layers() if hasattr(branch, "branch_layers") else None  # pyright: ignore
    if layers is not None:
        out = _one_kernel(x, norm, branch, scale, context, add, layers)
        if out is not None:
            return out
    deferrable = layers is not None and all(type(layer) is Linear for layer in layers.reads)
    normed = norm_for_linear(x, norm) if deferrable else apply_norm(x, norm)
    if layers is not None and layers.folds_scale:
        out = branch(normed, *context, scale=scale)
    else:
        out = branch(normed, *context)
        if scale is not None:
            out = out * scale if isinstance(scale, Tensor) else scale(out)
    return x + out if add else out


def _one_kernel(
    x: Tensor,
    norm: nn.LayerNorm,
    branch: Any,
    scale: nn.Module | Tensor | None,
    context: tuple[Any, ...],
    add: bool,
    layers: Layers,
) -> Tensor | None:
    """The branch by one of omma's kernels; None where none fits."""
    modules: list[nn.Module] = [branch]
    if isinstance(scale, nn.Module):
        if type(scale) not in (LayerScale, nn.Identity):
            return None
        modules.append(scale)
        gamma = scale.gamma if isinstance(scale, LayerScale) else None
    else:
        gamma = scale
    first, last = layers.reads[0], layers.last
    if layers.between == "gelu":
        if branches.takes_mlp(x, norm, first, last, gamma, *modules):
            return branches.mlp(x, norm, first, last, gamma, add)
    elif layers.between == "attention" and all(c.plain for c in context):
        shapes = context[0].lengths(x) if context else ((x.shape[0], x.shape[1]),)
        if branches.takes_mix(x, norm, first, last, layers.heads, shapes, gamma, *modules):
            return branches.mix(x, norm, first, last, layers.heads, shapes, gamma, add)
    return None
