"""Cross-entropy between a teacher's and a student's distributions [Caron 2021, arXiv 2104.14294].

`cross_entropy(student, teacher)` is -sum_i w_i sum_k t_ik log s_ik. Both distributions are softmaxes of n x K
logits, which are computed in chunks from features and prototypes, so that they need not fit into memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omma.ops.directions import lengths

_VALUES = 1 << 23  # logits in memory at a time: 32 MiB of fp32
_SLICE = 1 << 21  # numbers of a lower-precision gradient that are added at a time


# ---------------------------------------------------------------- distributions
@dataclass(frozen=True)
class Student:
    """s_i = softmax(features_i . p / temperature) over the prototypes p, in rows of any number.

    normalised: prototypes of any length stand for their directions (no normalised copy is made). gain: times
    these, for each prototype.
    """

    features: Float[Tensor, "n d"]
    prototypes: Float[Tensor, "k d"]
    temperature: float
    normalised: bool = True
    gain: Float[Tensor, "k"] | None = None


def probabilities(
    logits: Float[Tensor, "*b k"],
    centre: Float[Tensor, "k"],
    temperature: float,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*b k"]:
    """The teacher's centred and sharpened distribution softmax((g - C) / temperature) [eq. 1 and 4]."""
    return ((logits.to(dtype) - centre) / temperature).softmax(-1)


@dataclass(frozen=True)
class LazyProbabilities:
    """`probabilities` of the cosines between features and prototypes, computed for the rows that are indexed.

    With a centre by Sinkhorn-Knopp they are balanced assignments.
    """

    features: Float[Tensor, "m d"]
    prototypes: Float[Tensor, "k d"]
    scales: Float[Tensor, "k"]  # of the prototypes: their inverse lengths, times a gain
    centre: Float[Tensor, "k"]
    temperature: float

    def __len__(self) -> int:
        return len(self.features)

    @torch.no_grad()
    def __getitem__(self, rows: Int[Tensor, "r"]) -> Float[Tensor, "r k"]:
        logits = (self.features[rows] @ self.prototypes.T).to(self.scales.dtype)
        return logits.mul_(self.scales).sub_(self.centre).div_(self.temperature).softmax(-1)


@dataclass(frozen=True)
class Teacher:
    """What each of a student's n rows is compared with: probabilities[rows_i], weighted by weights_i.

    Probabilities are constants; their sum may differ from 1.
    """

    probabilities: Float[Tensor, "m k"] | LazyProbabilities
    rows: Int[Tensor, "n"]
    weights: Float[Tensor, "n"]


def other_views(teacher: Float[Tensor, "g b k"], views: int) -> Teacher:
    """For the mean of H(t_u, s_v) over images and pairs of views u != v [eq. 3].

    `teacher`: of g views; the student's rows are v = `views` views of b images, of which the first g are the
    teacher's. The probabilities are summed over u before the cross-entropy, which then costs v terms, not
    v g. Raises ValueError for v < 2.
    """
    if views < 2:
        raise ValueError("DINO's loss compares different views of an image: it needs at least 2")
    globals_, b, _ = teacher.shape
    # one of the teacher's views is compared with the sum of the others; all further views share the whole sum
    sums = teacher.new_empty(globals_ + 1, *teacher.shape[1:])
    torch.sum(teacher, 0, out=sums[-1])
    torch.sub(sums[-1], teacher, out=sums[:-1])
    which = torch.arange(views, device=teacher.device).clamp(max=globals_)
    rows = (which[:, None] * b + torch.arange(b, device=teacher.device)).flatten()
    weights = sums.new_full((views * b,), 1 / (b * globals_ * (views - 1)))
    return Teacher(sums.flatten(0, 1), rows, weights)


def hidden_patches(
    teacher: Float[Tensor, "m k"] | LazyProbabilities, counts: Float[Tensor, "m"], images: int, rows: int
) -> Teacher:
    """For the mean over images of each one's mean of H(t, s) over its m masked patches [Zhou 2021, eq. 2, 3].

    `counts`: how many masked patches the image of each row has. An image (each view counts as one) without
    masked patches adds 0 to the mean, as in the published code. `rows`: of the student; those after the first
    m are padding and have weight 0.
    """
    m, device = len(teacher), counts.device
    index = torch.arange(rows, device=device).clamp(max=max(0, m - 1))
    return Teacher(teacher, index, F.pad(1 / (counts * images), (0, rows - m)))


# ---------------------------------------------------------------- cross-entropy
def cross_entropy(student: Student, teacher: Teacher, values: int = _VALUES) -> Float[Tensor, ""]:
    """H(t, s) = -sum_i w_i sum_k t_ik log s_ik, with gradients for the student alone."""
    return cross_entropies([(student, teacher)], [1.0], values)[0]


def cross_entropies(
    pairs: Sequence[tuple[Student, Teacher]], scales: Sequence[float], values: int = _VALUES
) -> tuple[Float[Tensor, ""], Float[Tensor, "t"]]:
    """(sum_j scale_j H(t_j, s_j), each H without its scale and without gradient).

    Students with the same prototypes and temperature share one gradient of the prototypes. At most `values`
    of the student's logits exist at a time; gradients are computed together with the loss.
    """
    order: list[int] = []
    totals, each = [], []
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, (student, _) in enumerate(pairs):
        shared = (id(student.prototypes), student.temperature, student.normalised, id(student.gain))
        groups.setdefault(shared, []).append(number)
    for numbers in groups.values():
        first = pairs[numbers[0]][0]
        total, losses = _CrossEntropy.apply(  # pyright: ignore
            [pairs[i][1] for i in numbers], [scales[i] for i in numbers], first.prototypes, first.gain,
            first.temperature, first.normalised, values, *(pairs[i][0].features for i in numbers),
        )  # fmt: skip
        order += numbers
        totals.append(total)
        each.append(losses)
    if len(totals) == 1:
        return totals[0], each[0]
    by_pair = torch.cat(each)[torch.tensor(order, device=each[0].device).argsort()]
    return torch.stack(totals).sum(), by_pair


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        teachers: Sequence[Teacher],
        scales: Sequence[float],
        prototypes: Tensor,
        gain: Tensor | None,
        temperature: float,
        normalised: bool,
        values: int,
        *students: Tensor,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(prototypes.dtype, torch.float32)
        inverse = 1 / lengths(prototypes) if normalised else prototypes.new_ones((), dtype=exact)
        slopes = inverse / temperature
        sharpness = slopes if gain is None else slopes * gain.to(exact)
        trained = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        d_prototypes = torch.zeros_like(prototypes, dtype=exact) if trained else None
        d_students = [
            torch.empty_like(x) if needed else None
            for x, needed in zip(students, ctx.needs_input_grad[7:], strict=True)
        ]
        each = torch.zeros(len(teachers), dtype=exact, device=prototypes.device)
        size = max(1, values // len(prototypes))
        for number, (features, teacher, scale) in enumerate(zip(students, teachers, scales, strict=True)):
            d_features = d_students[number]
            for start in range(0, len(features), size):
                chunk = slice(start, start + size)
                x = features[chunk]
                target = teacher.probabilities[teacher.rows[chunk]].to(exact)
                target = target.mul_(teacher.weights[chunk, None])
                loss, gradient = _loss_and_gradient(x, prototypes, sharpness, target)
                del target
                each[number] += loss
                if d_features is None and d_prototypes is None:
                    continue
                gradient = gradient.mul_(slopes * scale).to(x.dtype)
                if d_prototypes is not None:  # of prototypes with a gain of 1
                    _add_product(d_prototypes, gradient.T, x)
                if d_features is not None:
                    gradient = gradient if gain is None else gradient.mul_(gain)
                    d_features[chunk] = gradient @ prototypes
                del gradient  # or it would stay in memory beside the next chunk's
        d_gain = None
        if d_prototypes is not None:
            if gain is not None:
                d_gain = _along(d_prototypes, prototypes).to(gain.dtype)
            if normalised:
                _project_out(d_prototypes, prototypes, inverse)
            if gain is not None:
                d_prototypes.mul_(gain[:, None])
            d_prototypes = d_prototypes.to(prototypes.dtype)
        ctx.save_for_backward(d_prototypes, d_gain, *d_students)
        ctx.mark_non_differentiable(each)
        return each @ each.new_tensor(scales), each

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        d_prototypes, d_gain, *d_students = (
            None if d is None else d * grad.to(d.dtype) for d in ctx.saved_tensors
        )
        return (None, None, d_prototypes, d_gain, None, None, None, *d_students)


def _loss_and_gradient(
    x: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "k d"],
    sharpness: Float[Tensor, "*k"],
    target: Float[Tensor, "n k"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "n k"]]:
    """Cross-entropy with logits z = x prototypes^T sharpness, and its gradient by z, from one pass of exp."""
    mass = target.sum(-1, keepdim=True)
    logits = (x @ prototypes.T).to(target.dtype).mul_(sharpness)
    expected = torch.einsum("nk,nk->n", target, logits).sum()  # sum t z, without a product of their size
    top = logits.amax(-1, keepdim=True)
    exponentials = logits.sub_(top).exp_()
    sums = exponentials.sum(-1, keepdim=True)
    loss = (mass * (top + sums.log())).sum() - expected
    return loss, exponentials.mul_(mass / sums).sub_(target)


def _add_product(total: Float[Tensor, "k d"], a: Float[Tensor, "k n"], b: Float[Tensor, "n d"]) -> None:
    """total += a b; in slices where the product has a lower precision than the sum."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
        return
    size = max(1, _SLICE // total.shape[1])
    for sums, rows in zip(total.split(size), a.split(size), strict=True):
        sums += rows @ b


def _along(gradient: Float[Tensor, "k d"], prototypes: Float[Tensor, "k d"]) -> Float[Tensor, "k"]:
    """Inner products of the rows of both."""
    size = max(1, _SLICE // gradient.shape[1])
    pairs = zip(gradient.split(size), prototypes.split(size), strict=True)
    return torch.cat([torch.linalg.vecdot(g, p.to(g.dtype)) for g, p in pairs])


def _project_out(
    gradient: Float[Tensor, "k d"], prototypes: Float[Tensor, "k d"], inverse: Float[Tensor, "k"]
) -> None:
    """Project out, in place, the gradient's component along each prototype: its length has no effect."""
    size = max(1, _SLICE // gradient.shape[1])
    for g, p, i in zip(gradient.split(size), prototypes.split(size), inverse.split(size), strict=True):
        directions = p * i[:, None]
        g.sub_(directions * torch.linalg.vecdot(directions, g)[:, None])
