"""Softmax attention, by the route that is fastest where it runs."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def weights(q: Float[Tensor, "b h n e"], k: Float[Tensor, "b h m e"]) -> Float[Tensor, "b h n m"]:
    """softmax(q k^T / sqrt(e)), [Vaswani 2017, eq. 1]."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)


def attend(
    q: Float[Tensor, "b h n e"], k: Float[Tensor, "b h m e"], v: Float[Tensor, "b h m e"]
) -> Float[Tensor, "b h n e"]:
    """softmax(q k^T / sqrt(e)) v.

    The fused kernel, except for training in bf16 on a CPU: there the backward pass of the fused kernel takes
    several times as long as the formula written out, up to some hundreds of tokens.
    """
    written_out = (
        q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and k.shape[-2] <= 1024
    )
    if written_out:
        return weights(q, k) @ v
    return F.scaled_dot_product_attention(q, k, v)
