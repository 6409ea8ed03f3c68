"""Assignments that use all prototypes equally, by Sinkhorn-Knopp [Cuturi 2013, arXiv 1306.0895]."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

_VALUES = 1 << 22  # of the matrix that exist in fp32 at a time: 16 MiB


def _one_process(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def centre(
    logits: Float[Tensor, "n k"],
    temperature: float,
    iterations: int = 3,
    total: Callable[[Tensor], Tensor] = _one_process,
    largest: Callable[[Tensor], Tensor] = _one_process,
    scale: Float[Tensor, "k"] | float = 1.0,
    values: int = _VALUES,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "k"]:
    """The c for which columns of softmax((logits scale - c) / temperature) sum to about n / k, in `dtype`.

    The assignments of [Caron 2020, arXiv 2006.09882, section 3.1], as a softmax with a centre c.

    total, largest: sum and maximum over all processes, each of which has some of the rows (any number).

    Q = diag(u) M diag(v), M = exp(logits / temperature), with rows that sum to 1: u follows from v, and v is
    exp(-c / temperature). The matrix is never stored; each iteration computes `values` of its numbers at a
    time. The first iteration works with logarithms. After it, once rows sum to 1, each column's largest entry
    is at least 1 / n k, so that no column's sum underflows in fp32 at any temperature.
    """

    def scores() -> Iterator[Tensor]:
        for rows in logits.split(max(1, values // logits.shape[1])):
            yield (rows.to(dtype) * scale).div_(temperature)

    log_sums = logits.new_full(logits.shape[1:], float("-inf"), dtype=dtype)
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
