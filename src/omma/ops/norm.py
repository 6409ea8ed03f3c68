"""Layer norm [Ba 2016, arXiv 1607.06450] where torch's kernel for bf16 on a CPU is too coarse to train with.

That kernel sums the gradients of scale and shift over all tokens in bf16: they are off by 3 % after 1,000
tokens and by 10 to 60 % after 16,000. omma's own kernel sums them in fp32. Where it does not run, torch's
kernel computes the norm without scale and shift, and other operations apply those (docs/adr/0004).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.ops.cpu import native


class DeferredNorm(NamedTuple):
    """layer(x), not computed yet: a linear layer folds scale and shift into its weights (ops/linear.py)."""

    x: Float[Tensor, "*b d"]
    layer: nn.LayerNorm


def _is_coarse(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and torch.is_grad_enabled()


def norm(x: Float[Tensor, "*b d"], layer: nn.LayerNorm) -> Float[Tensor, "*b d"]:
    """layer(x)."""
    if native.fits(x, layer.weight, layer.bias) and x.shape[-1:] == layer.normalized_shape:
        return native.Norm.apply(x, layer.weight, layer.bias, layer.eps)  # pyright: ignore[reportReturnType]
    if not _is_coarse(x):
        return layer(x)
    return torch.addcmul(layer.bias, F.layer_norm(x, layer.normalized_shape, eps=layer.eps), layer.weight)


def norm_for_linear(x: Float[Tensor, "*b d"], layer: nn.LayerNorm) -> Float[Tensor, "*b d"] | DeferredNorm:
    """layer(x) for `linear` to read; deferred where folding it into the linear layer is the faster way."""
    deferred = _is_coarse(x) and not native.fits(x, layer.weight)
    return DeferredNorm(x, layer) if deferred else norm(x, layer)
