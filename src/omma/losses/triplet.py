"""Triplets: an image is nearer to one of its class than to one of another, by a margin [Schroff 2015]."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Triplets(NamedTuple):
    """Pairs of an anchor and another image of its class, each with one negative."""

    loss: Float[Tensor, "b n"]  # max(0, d(a, p) - d(a, n) + margin); 0 where `pairs` is false
    pairs: Bool[Tensor, "b n"]  # which rows are of the anchor's class, where there is a negative too
    positive: Float[Tensor, "b n"]  # d(a, p)
    negative: Float[Tensor, "b n"]  # d(a, n) of the negative chosen for that pair


def semi_hard(
    anchors: Float[Tensor, "b d"],
    labels: Int[Tensor, "b"],
    everyone: Float[Tensor, "n d"],
    every_label: Int[Tensor, "n"],
    margin: float,
    offset: int = 0,
) -> Triplets:
    """FaceNet's triplets within a batch [Schroff 2015, arXiv 1503.03832, eq. 1 and 4].

    d is the squared distance of unit vectors, in [0, 4]; inputs are normalised here. Of each pair of one
    class, the negative is the nearest of those that are farther than the positive: within the margin it is
    semi-hard, beyond it the loss is 0. Where none is farther, it is the farthest of all: the nearest would
    pull everything into one point. everyone: the vectors of all processes, of which this process's begin at
    row `offset`. Rows without a label (-1) take no part. Equal vectors give the margin.
    """
    a, x = F.normalize(anchors.float(), dim=-1), F.normalize(everyone.float(), dim=-1)
    distance = (2 - 2 * a @ x.T).clamp(min=0)
    known = (labels >= 0)[:, None] & (every_label >= 0)[None]
    same = known & (labels[:, None] == every_label[None])
    negatives = known & ~same
    itself = torch.arange(len(a), device=a.device)[:, None] + offset == torch.arange(len(x), device=a.device)
    pairs = same & ~itself & negatives.any(1, keepdim=True)
    with torch.no_grad():
        ordered, order = distance.masked_fill(~negatives, torch.inf).sort(1)
        farther = torch.searchsorted(ordered, distance, right=True)  # the first that is farther than d(a, p)
        chosen = order.gather(1, torch.minimum(farther, (negatives.sum(1, keepdim=True) - 1).clamp(min=0)))
    negative = distance.gather(1, chosen)
    loss = (distance - negative + margin).clamp(min=0)
    return Triplets(torch.where(pairs, loss, torch.zeros_like(loss)), pairs, distance, negative)
