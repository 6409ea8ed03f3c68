"""Layer norm [Ba 2016, arXiv 1607.06450] where torch's kernel for bf16 on a CPU is too coarse to train with.

That kernel sums the gradients of scale and shift over all tokens in bf16, which is 3 % off after 1,000 tokens
and 10 to 60 % after 16,000. Here it is used without them, and what applies them sums in fp32; or omma's own
kernel, which does, is used in its place.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.ops.cpu import native
from omma.ops.linear import linear


def _apart(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and torch.is_grad_enabled()


def norm(x: Float[Tensor, "*b d"], layer: nn.LayerNorm) -> Float[Tensor, "*b d"]:
    """layer(x)."""
    if native.fits(x, layer.weight, layer.bias) and x.shape[-1:] == layer.normalized_shape:
        return native.Norm.apply(x, layer.weight, layer.bias, layer.eps)  # pyright: ignore[reportReturnType]
    if not _apart(x):
        return layer(x)
    return torch.addcmul(layer.bias, F.layer_norm(x, layer.normalized_shape, eps=layer.eps), layer.weight)


def norm_linear(
    x: Float[Tensor, "*b d"],
    layer: nn.LayerNorm,
    weight: Float[Tensor, "o d"],
    bias: Float[Tensor, "o"] | None,
) -> Float[Tensor, "*b o"]:
    """linear(layer(x)): scale and shift folded into the product, W (s x + t) + b = (W s) x + (W t + b).

    Few tokens have them applied instead: folding passes over the weights, not over the tokens.
    """
    if not _apart(x) or native.fits(x, weight):
        return linear(norm(x, layer), weight, bias)
    if x.numel() // x.shape[-1] < 4 * weight.shape[0]:
        return linear(norm(x, layer), weight, bias)
    x = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    shift = weight @ layer.bias if bias is None else torch.addmv(bias, weight, layer.bias)
    return linear(x, weight * layer.weight, shift)
