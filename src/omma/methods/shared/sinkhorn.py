"""Assignments that use all prototypes alike, by Sinkhorn and Knopp [Cuturi 2013, arXiv 1306.0895]."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

_VALUES = 1 << 22  # of the matrix that are held in fp32 at a time: 16 MiB


def _alone(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def centre(
    logits: Float[Tensor, "n k"],
    temperature: float,
    iterations: int = 3,
    total: Callable[[Tensor], Tensor] = _alone,
    largest: Callable[[Tensor], Tensor] = _alone,
    scale: Float[Tensor, "k"] | float = 1.0,
    values: int = _VALUES,
) -> Float[Tensor, "k"]:
    """The c with which softmax((logits scale - c) / temperature) has columns of about n / k, in fp32.

    The assignments of [Caron 2020, arXiv 2006.09882, section 3.1], as a softmax with another centre.

    total, largest: sum and maximum over all processes, where each holds some of the rows (any number).

    Q = diag(u) M diag(v), M = exp(logits / temperature), whose rows sum to 1: u follows from v, and v is what
    a centre does. No matrix is written; each iteration makes `values` numbers of it at a time. The first is
    computed in logarithms. From then on the largest entry of a column that summed to 1 is 1 / n k or more
    when rows do, so that no column's sum leaves fp32 at any temperature.
    """

    def scores() -> Iterator[Tensor]:
        for rows in logits.split(max(1, values // logits.shape[1])):
            yield (rows.float() * scale).div_(temperature)

    log_sums = logits.new_full(logits.shape[1:], float("-inf"), dtype=torch.float32)
    for m in scores():
        torch.logaddexp(log_sums, m.logsumexp(0), out=log_sums)
    top = largest(log_sums)
    c = top + total(torch.exp(log_sums - top)).log()
    for _ in range(1, iterations):
        sums = torch.zeros_like(c)
        for m in scores():
            sums += m.sub_(c).softmax(-1).sum(0)
        c += total(sums).log()
    return c * temperature
