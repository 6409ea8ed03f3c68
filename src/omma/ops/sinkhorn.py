"""Assignments that use all prototypes alike, by Sinkhorn and Knopp [Cuturi 2013, arXiv 1306.0895]."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def _alone(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def sinkhorn(
    logits: Float[Tensor, "n k"],
    temperature: float,
    iterations: int = 3,
    total: Callable[[Tensor], Tensor] = _alone,
    largest: Callable[[Tensor], Tensor] = _alone,
) -> Float[Tensor, "n k"]:
    """Rows that sum to 1 and whose columns sum to about n / k [Caron 2020, arXiv 2006.09882, section 3.1].

    total, largest: sum and maximum over all processes, where each holds some of the rows (any number).
    Computed in fp32 as diag(v) M diag(u): an iteration reads the matrix twice and never writes it. Under a
    temperature of .03 cosines' exponentials leave fp32: there it is computed in logarithms, more slowly.
    """
    scores = logits.float() / temperature
    if temperature < 0.03:
        return _in_logarithms(scores, iterations, total, largest)
    if not len(scores):  # other processes still wait for this one's sums
        scores = scores.new_full((1, scores.shape[1]), float("-inf"))
    top = scores.amax(1, keepdim=True)
    highest = largest(top.max())
    m = scores.sub_(top).exp_().nan_to_num_(0.0)  # each row's largest is 1, so that no row underflows
    v = torch.exp(top[:, 0] - highest)  # and this is what it was taken out of
    k = logits.shape[1]
    rows = scores.new_tensor([float(len(logits))])
    for _ in range(iterations):
        sums = total(torch.cat([v @ m, rows]))
        u = sums[-1] / (k * sums[:-1])  # columns of n / k beside rows of 1, or u and v drift out of fp32
        u = u.nan_to_num_(posinf=0.0)  # a prototype that nobody is near to, in fp32
        v = (1 / (m @ u)).nan_to_num_(posinf=0.0)
    return m.mul_(u).mul_(v[:, None])[: len(logits)]


def _in_logarithms(
    scores: Float[Tensor, "n k"],
    iterations: int,
    total: Callable[[Tensor], Tensor],
    largest: Callable[[Tensor], Tensor],
) -> Float[Tensor, "n k"]:
    lowest = scores.new_full((1, scores.shape[1]), torch.finfo(scores.dtype).min)
    for _ in range(iterations):
        top = largest(torch.cat([scores, lowest]).amax(0))
        scores = scores - top - total(torch.exp(scores - top).sum(0)).log()
        scores = scores - scores.logsumexp(1, keepdim=True)
    return scores.exp()
