"""Cross-entropy between a teacher's and a student's soft assignments [Caron 2021, arXiv 2104.14294]."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_VALUES = 1 << 24  # logits held at a time: 64 MiB of fp32


def targets(
    logits: Float[Tensor, "*b k"], centre: Float[Tensor, "k"], temperature: float
) -> Float[Tensor, "*b k"]:
    """The teacher's centred and sharpened distribution softmax((t - C) / temperature), [eq. 1 and 4]."""
    return ((logits.float() - centre) / temperature).softmax(-1)


def dino(
    student: Float[Tensor, "v b d"],
    prototypes: Float[Tensor, "k d"],
    teacher: Float[Tensor, "g b k"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean of H(t_i, softmax(s_j W^T / temperature)) over images and pairs i != j [eq. 3].

    `student`: v views of the images before the last layer W, `prototypes`; the first g of them the teacher
    saw too. `teacher`: probabilities. The targets are summed before the cross-entropy, so its cost is that of
    v terms, not of v g. Needs v >= 2.
    """
    views, globals_ = len(student), len(teacher)
    if views < 2:
        raise ValueError("DINO's loss compares different views of an image: it needs at least 2")
    b = student.shape[1]
    total = teacher.sum(0)
    # what each of the teacher's views is compared with is the others' sum; all further views share the whole
    sums = torch.cat([total - teacher, total[None]]).flatten(0, 1)
    which = torch.arange(views, device=student.device).clamp(max=globals_)
    rows = (which[:, None] * b + torch.arange(b, device=student.device)).flatten()
    weights = sums.new_full((views * b,), 1 / (b * globals_ * (views - 1)))
    return cross_entropy(student.flatten(0, 1), prototypes, sums, rows, weights, temperature)


def masked_patches(
    student: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "k d"],
    teacher: Float[Tensor, "m k"],
    counts: Float[Tensor, "m"],
    images: int,
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean over `images` of each one's mean of H(t, s) over its masked patches [Zhou 2021, eq. 2 and 3].

    The m rows are the masked patches only; `counts`: how many of them the image of each row has. An image
    (a view of one counts as one) without a masked patch adds 0 and counts, as in the published code. Further
    rows of the student do not count.
    """
    m, n = len(teacher), len(student)
    rows = torch.arange(n, device=student.device).clamp(max=max(0, m - 1))
    weights = F.pad(1 / (counts * images), (0, n - m))
    return cross_entropy(student, prototypes, teacher, rows, weights, temperature)


def cross_entropy(
    features: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "k d"],
    targets: Float[Tensor, "m k"],
    rows: Int[Tensor, "n"],
    weights: Float[Tensor, "n"],
    temperature: float,
    values: int = _VALUES,
) -> Float[Tensor, ""]:
    """sum_i weights_i H(targets[rows_i], softmax(features_i prototypes^T / temperature)).

    Targets are constants and may sum to other numbers than 1. No more than `values` logits exist at a time,
    gradients included, whatever n is: they are taken while the loss is computed.
    """
    return _CrossEntropy.apply(features, prototypes, targets, rows, weights, temperature, values)  # pyright: ignore


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        prototypes: Tensor,
        targets: Tensor,
        rows: Tensor,
        weights: Tensor,
        temperature: float,
        values: int,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        exact = torch.promote_types(features.dtype, torch.float32)
        d_features = torch.empty_like(features) if wanted[0] else None
        d_prototypes = torch.zeros_like(prototypes, dtype=exact) if wanted[1] else None
        loss = torch.zeros((), dtype=exact, device=features.device)
        size = max(1, values // len(prototypes))
        for start in range(0, len(features), size):
            part = slice(start, start + size)
            x, weight = features[part], weights[part, None]
            target = targets[rows[part]].to(exact) * weight
            logits = (x @ prototypes.T).to(exact) / temperature
            normaliser = logits.logsumexp(-1, keepdim=True)
            mass = target.sum(-1, keepdim=True)
            loss += (normaliser * mass).sum() - (target * logits).sum()
            if any(wanted):
                gradient = logits.sub_(normaliser).exp_().mul_(mass).sub_(target).div_(temperature)
                gradient = gradient.to(features.dtype)
                if d_features is not None:
                    d_features[part] = gradient @ prototypes
                if d_prototypes is not None:
                    d_prototypes += gradient.T @ x
        d_prototypes = None if d_prototypes is None else d_prototypes.to(prototypes.dtype)
        ctx.save_for_backward(*(d for d in (d_features, d_prototypes) if d is not None))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        saved = iter(ctx.saved_tensors)
        both = (next(saved) if wanted else None for wanted in ctx.needs_input_grad[:2])
        gradients = (None if d is None else d * grad.to(d.dtype) for d in both)
        return (*gradients, None, None, None, None, None)
