"""Losses of codes and features predicted for masked patches."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def codes(
    logits: Float[Tensor, "m k"], target: Int[Tensor, "m"], count: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """-1/count sum_i log softmax(logits_i)[target_i] [Bao 2021, eq. 3]; uniform logits give log k.

    count: m, or the mean m of all processes. The loss is 0 where nothing is masked.
    """
    return F.cross_entropy(logits.float(), target, reduction="sum") / count.clamp(min=1e-6)


def cosine(
    predicted: Float[Tensor, "m d"], target: Float[Tensor, "m d"], count: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """-1/count sum_i cos(predicted_i, target_i) [Fang 2022, section 2.2], in [-1, 1]; count as in `codes`."""
    return -F.cosine_similarity(predicted.float(), target.float(), dim=-1).sum() / count.clamp(min=1e-6)


def smooth_l1(
    predicted: Float[Tensor, "m d"], target: Float[Tensor, "m d"], count: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """1/count sum_i 1/d sum_j h(predicted_ij - target_ij), h(x) = x^2 / 2 below 1, |x| - 1/2 above.

    [Girshick 2015, arXiv 1504.08083, eq. 3]; count as in `codes`.
    """
    total = F.smooth_l1_loss(predicted.float(), target.float(), reduction="sum")
    return total / (count.clamp(min=1e-6) * predicted.shape[-1])
