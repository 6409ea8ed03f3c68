"""Cross-entropy between a teacher's and a student's soft assignments [Caron 2021, arXiv 2104.14294].

Neither side's logits need exist at once: both are made in pieces from features and prototypes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omma.ops.directions import lengths

_VALUES = 1 << 23  # logits held at a time: 32 MiB of fp32
_SLICE = 1 << 21  # numbers of a gradient in lower precision at a time


def targets(
    logits: Float[Tensor, "*b k"], centre: Float[Tensor, "k"], temperature: float
) -> Float[Tensor, "*b k"]:
    """The teacher's centred and sharpened distribution softmax((t - C) / temperature), [eq. 1 and 4]."""
    return ((logits.float() - centre) / temperature).softmax(-1)


@dataclass(frozen=True)
class Targets:
    """`targets` of cosines between features and prototypes of any length, made when rows are asked for.

    A centre by Sinkhorn-Knopp makes them balanced assignments.
    """

    features: Float[Tensor, "m d"]
    prototypes: Float[Tensor, "k d"]
    inverse: Float[Tensor, "k"]  # of the prototypes' lengths
    centre: Float[Tensor, "k"]
    temperature: float

    def __len__(self) -> int:
        return len(self.features)

    @torch.no_grad()
    def __getitem__(self, rows: Int[Tensor, "r"]) -> Float[Tensor, "r k"]:
        logits = (self.features[rows] @ self.prototypes.T).to(self.inverse.dtype)
        return logits.mul_(self.inverse).sub_(self.centre).div_(self.temperature).softmax(-1)


class Term(NamedTuple):
    """scale sum_i weights_i H(targets[rows_i], student's i): what `together` adds up.

    Targets are constants and may sum to other numbers than 1.
    """

    features: Float[Tensor, "n d"]
    targets: Float[Tensor, "m k"] | Targets
    rows: Int[Tensor, "n"]
    weights: Float[Tensor, "n"]
    scale: float = 1.0


def views(student: Float[Tensor, "v b d"], teacher: Float[Tensor, "g b k"]) -> Term:
    """Mean of H(t_i, s_j) over images and pairs i != j [eq. 3].

    `student`: v views of the images before the last layer; the first g of them the teacher saw too.
    `teacher`: probabilities. The targets are summed before the cross-entropy, so its cost is that of v terms,
    not of v g. Raises ValueError for v < 2.
    """
    number, globals_ = len(student), len(teacher)
    if number < 2:
        raise ValueError("DINO's loss compares different views of an image: it needs at least 2")
    b = student.shape[1]
    # what each of the teacher's views is compared with is the others' sum; all further views share the whole
    sums = teacher.new_empty(globals_ + 1, *teacher.shape[1:])
    torch.sum(teacher, 0, out=sums[-1])
    torch.sub(sums[-1], teacher, out=sums[:-1])
    which = torch.arange(number, device=student.device).clamp(max=globals_)
    rows = (which[:, None] * b + torch.arange(b, device=student.device)).flatten()
    weights = sums.new_full((number * b,), 1 / (b * globals_ * (number - 1)))
    return Term(student.flatten(0, 1), sums.flatten(0, 1), rows, weights)


def hidden(
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "m k"] | Targets,
    counts: Float[Tensor, "m"],
    images: int,
    scale: float = 1.0,
) -> Term:
    """Mean over `images` of each one's mean of H(t, s) over its masked patches [Zhou 2021, eq. 2 and 3].

    The m rows are the masked patches only; `counts`: how many of them the image of each row has. An image
    (a view of one counts as one) without a masked patch adds 0 and counts, as in the published code. Further
    rows of the student do not count.
    """
    m, n = len(teacher), len(student)
    rows = torch.arange(n, device=student.device).clamp(max=max(0, m - 1))
    weights = F.pad(1 / (counts * images), (0, n - m))
    return Term(student, teacher, rows, weights, scale)


def together(
    terms: Sequence[Term],
    prototypes: Float[Tensor, "k d"],
    temperature: float,
    unit: bool = False,
    values: int = _VALUES,
) -> tuple[Float[Tensor, ""], Float[Tensor, "t"]]:
    """The sum of all terms, and each one before its scale, without a gradient.

    The student's i is softmax(features_i prototypes^T / temperature). unit: prototypes of any length stand
    for their directions, of which no copy is made. No more than `values` logits of the student exist at a
    time, gradients included, and one gradient of the prototypes: they are taken while the loss is computed.
    """
    features = (term.features for term in terms)  # where autograd sees them
    return _CrossEntropy.apply(terms, prototypes, temperature, unit, values, *features)  # pyright: ignore


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        terms: Sequence[Term],
        prototypes: Tensor,
        temperature: float,
        unit: bool,
        values: int,
        *features: Tensor,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(prototypes.dtype, torch.float32)
        inverse = 1 / lengths(prototypes) if unit else prototypes.new_ones((), dtype=exact)
        sharp = inverse / temperature
        d_prototypes = torch.zeros_like(prototypes, dtype=exact) if ctx.needs_input_grad[1] else None
        d_features = [
            torch.empty_like(x) if wanted else None
            for x, wanted in zip(features, ctx.needs_input_grad[5:], strict=True)
        ]
        each = torch.zeros(len(terms), dtype=exact, device=prototypes.device)
        size = max(1, values // len(prototypes))
        for number, (term, d_whole) in enumerate(zip(terms, d_features, strict=True)):
            for start in range(0, len(term.features), size):
                part = slice(start, start + size)
                x = term.features[part]
                target = term.targets[term.rows[part]].to(exact).mul_(term.weights[part, None])
                loss, gradient = _compared(x, prototypes, sharp, target)
                del target
                each[number] += loss
                if d_whole is None and d_prototypes is None:
                    continue
                gradient = gradient.mul_(sharp * term.scale).to(x.dtype)
                if d_whole is not None:
                    d_whole[part] = gradient @ prototypes
                if d_prototypes is not None:
                    _add_product(d_prototypes, gradient.T, x)
                del gradient  # or it would be there beside the next chunk's
        if d_prototypes is not None:
            if unit:
                _turn(d_prototypes, prototypes, inverse)
            d_prototypes = d_prototypes.to(prototypes.dtype)
        ctx.save_for_backward(d_prototypes, *d_features)
        ctx.mark_non_differentiable(each)
        return each @ each.new_tensor([term.scale for term in terms]), each

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        d_prototypes, *d_features = (None if d is None else d * grad.to(d.dtype) for d in ctx.saved_tensors)
        return (None, d_prototypes, None, None, None, *d_features)


def _compared(
    x: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "k d"],
    sharp: Float[Tensor, "*k"],
    target: Float[Tensor, "n k"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "n k"]]:
    """Cross-entropy with logits x prototypes^T sharp, and its gradient by these, by one pass of exp."""
    mass = target.sum(-1, keepdim=True)
    logits = (x @ prototypes.T).to(target.dtype).mul_(sharp)
    told = torch.einsum("nk,nk->n", target, logits).sum()  # without a product of their size
    top = logits.amax(-1, keepdim=True)
    exponentials = logits.sub_(top).exp_()
    sums = exponentials.sum(-1, keepdim=True)
    loss = (mass * (top + sums.log())).sum() - told
    return loss, exponentials.mul_(mass / sums).sub_(target)


def _add_product(total: Float[Tensor, "k d"], a: Float[Tensor, "k n"], b: Float[Tensor, "n d"]) -> None:
    """total += a b. A product of lower precision than the sum is made in slices."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
        return
    size = max(1, _SLICE // total.shape[1])
    for some, rows in zip(total.split(size), a.split(size), strict=True):
        some += rows @ b


def _turn(gradient: Float[Tensor, "k d"], vectors: Float[Tensor, "k d"], inverse: Float[Tensor, "k"]) -> None:
    """In place, that with lengths held to that of vectors which stand for their directions."""
    size = max(1, _SLICE // gradient.shape[1])
    for g, v, i in zip(gradient.split(size), vectors.split(size), inverse.split(size), strict=True):
        directions = v * i[:, None]
        g.sub_(directions * torch.linalg.vecdot(directions, g)[:, None])
