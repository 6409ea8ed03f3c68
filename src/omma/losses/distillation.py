"""Cross-entropy between a teacher's and a student's soft assignments [Caron 2021, arXiv 2104.14294]."""

import torch
from jaxtyping import Float
from torch import Tensor


def targets(
    logits: Float[Tensor, "*b k"], centre: Float[Tensor, "k"], temperature: float
) -> Float[Tensor, "*b k"]:
    """The teacher's centred and sharpened distribution softmax((t - C) / temperature), [eq. 1 and 4]."""
    return ((logits.float() - centre) / temperature).softmax(-1)


def dino(
    student: Float[Tensor, "v b k"], teacher: Float[Tensor, "g b k"], temperature: float
) -> Float[Tensor, ""]:
    """Mean of H(t_i, softmax(s_j / temperature)) over images and pairs i != j [eq. 3].

    `student`: logits of v views, the first g of which the teacher saw too; `teacher`: probabilities. The
    targets are summed before the cross-entropy, so its cost is that of v terms, not of v g. Needs v >= 2.
    """
    views, globals_ = len(student), len(teacher)
    if views < 2:
        raise ValueError("DINO's loss compares different views of an image: it needs at least 2")
    logits = student.float() / temperature
    total = teacher.sum(0)
    own = torch.cat([teacher, teacher.new_zeros(views - globals_, *teacher.shape[1:])])
    weight = total - own  # sum over i != j, for each j
    pairs = globals_ * (views - 1)
    # H(t, s) = logsumexp(s) sum(t) - t.s
    entropy = logits.logsumexp(-1) * weight.sum(-1) - (weight * logits).sum(-1)
    return entropy.mean(1).sum() / pairs
