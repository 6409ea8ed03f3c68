"""Cross-entropy with soft targets, the multiclass hinge, and distillation of a teacher [Touvron 2020]."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def soft_cross_entropy(
    logits: Float[Tensor, "b k"],
    targets: Float[Tensor, "b k"],
    weights: Float[Tensor, "b"] | None = None,
    count: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """- sum_b w_b sum_k t_bk log softmax(z_b)_k / count; w = 1 and count = sum_b w_b by default.

    count: given where the batch is part of a larger one. The loss is 0 where all weights are 0.
    """
    rows = -(targets.float() * logits.float().log_softmax(-1)).sum(-1)
    return _mean(rows, weights, count)


def multiclass_hinge(
    logits: Float[Tensor, "b k"],
    targets: Float[Tensor, "b k"],
    weights: Float[Tensor, "b"] | None = None,
    count: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """sum_b w_b sum_(j != y) max(0, z_j - z_y + 1) / count [Weston and Watkins 1998].

    targets: one-hot, y is their 1. Of scores, never of probabilities. weights and count: as of
    `soft_cross_entropy`. Equal scores give K - 1.
    """
    own = (targets.float() * logits.float()).sum(-1, keepdim=True)
    rows = ((1 - targets.float()) * (logits.float() - own + 1).clamp(min=0)).sum(-1)
    return _mean(rows, weights, count)


def binary_cross_entropy(
    logits: Float[Tensor, "b k"],
    targets: Float[Tensor, "b k"],
    weights: Float[Tensor, "b k"],
    count: Float[Tensor, ""],
    positive_weights: Float[Tensor, "k"] | None = None,
) -> Float[Tensor, ""]:
    """- sum_bk w_bk (p_k t_bk log s(z_bk) + (1 - t_bk) log(1 - s(z_bk))) / count, with s the sigmoid."""
    values = F.binary_cross_entropy_with_logits(
        logits.float(), targets.float(), pos_weight=positive_weights, reduction="none"
    )
    return _mean(values, weights, count)


def hard_distillation(
    logits: Float[Tensor, "b k"],
    teacher: Float[Tensor, "b k"],
    weights: Float[Tensor, "b"] | None = None,
    count: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy with the teacher's decision, argmax z_t [Touvron 2020, eq. 3, second term]."""
    rows = F.cross_entropy(logits.float(), teacher.argmax(-1), reduction="none")
    return _mean(rows, weights, count)


def soft_distillation(
    logits: Float[Tensor, "b k"],
    teacher: Float[Tensor, "b k"],
    temperature: float,
    weights: Float[Tensor, "b"] | None = None,
    count: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """t^2 KL(softmax(z_t / t) || softmax(z / t)) [Hinton 2015, arXiv 1503.02531; Touvron 2020, eq. 2]."""
    student, teacher = ((z.float() / temperature).log_softmax(-1) for z in (logits, teacher))
    rows = (teacher.exp() * (teacher - student)).sum(-1) * temperature**2
    return _mean(rows, weights, count)


def mean_probabilities(first: Float[Tensor, "b k"], second: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """The mean of two heads' softmax, from their logits [Touvron 2020, section 4].

    (The published code averages the logits, which gives the softmaxes' geometric mean.)
    """
    return (first.float().softmax(-1) + second.float().softmax(-1)) / 2


def _mean(
    rows: Float[Tensor, "b *k"], weights: Float[Tensor, "b *k"] | None, count: Float[Tensor, ""] | None
) -> Float[Tensor, ""]:
    if weights is None:
        return rows.mean() if count is None else rows.sum() / count
    # not just a product: rows of weight 0 may be infinite, and 0 x infinity is not 0
    rows = torch.where(weights > 0, rows * weights, torch.zeros_like(rows))
    total = weights.sum() if count is None else count
    return rows.sum() / total.clamp(min=torch.finfo(total.dtype).tiny)
