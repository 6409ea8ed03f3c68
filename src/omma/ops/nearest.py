"""Exact nearest neighbours by blocked products: cosine or inner product, never n x n in memory."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 2**26  # similarities in memory at a time: 256 MB in fp32
CPU = torch.device("cpu")


class Neighbours(NamedTuple):
    """The nearest rows of the base for each query, nearest first; ties go to the lower row."""

    similarities: Float[np.ndarray, "m k"]  # fp32
    indices: Int[np.ndarray, "m k"]  # int64


def unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length 1, fp32; a row of zeros stays one."""
    tensor = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
    return torch.nn.functional.normalize(tensor, dim=1).numpy()


def nearest(
    queries: Float[np.ndarray, "m d"] | None,
    base: Float[np.ndarray, "n d"],
    k: int,
    device: torch.device = CPU,
) -> Neighbours:
    """The k (at most n) rows of `base` with the largest inner product; for cosine give `unit` vectors.

    queries None: each row of the base, which leaves itself out (then at most n - 1). Products are compared as
    fp64 has them (`ops.exact.Base`), and are the same whatever the other queries are.
    """
    from omma.ops.exact import Base

    rows = np.ascontiguousarray(base, np.float32)
    if k < 1 or len(rows) - (queries is None) < 1:
        raise ValueError(f"k={k}: must be at least 1, and the base must hold an image")
    if queries is None:
        found = Base([rows], device=device).nearest(rows, k, leave_out=np.arange(len(rows)))
    else:
        found = Base([rows], device=device).nearest(np.ascontiguousarray(queries, np.float32), k)
    return Neighbours(*found)


@torch.inference_mode()
def pairs_above(
    vectors: Float[np.ndarray, "n d"], threshold: float, others: Float[np.ndarray, "m d"] | None = None
) -> Iterator[tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"], Float[np.ndarray, "p"]]]:
    """Rows (i, j, inner product) that reach the threshold, a block at a time, by i, then by j.

    others None: pairs i < j within `vectors`; otherwise i of `vectors`, j of `others`.
    """
    rows = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
    base = rows if others is None else torch.from_numpy(np.ascontiguousarray(others, np.float32))
    size = max(1, BLOCK // max(len(base), 1))
    for start, chunk in zip(range(0, len(rows), size), rows.split(size)):
        first = start if others is None else 0
        similarity = chunk @ base[first:].T
        reached = similarity >= threshold
        if others is None:
            reached = reached.triu(1)
        i, j = reached.nonzero(as_tuple=True)
        yield (i + start).numpy(), (j + first).numpy(), similarity[i, j].numpy()


def top(similarity: Float[Tensor, "m n"], k: int) -> tuple[Tensor, Tensor]:
    """Similarities and indices of the k nearest, by similarity, then by index.

    topk orders ties arbitrarily: rows with equal similarities (duplicates, collapsed features) are sorted in
    full.
    """
    near, index = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    tied = (near[:, :-1] == near[:, 1:]).any(dim=1).nonzero()[:, 0]
    if len(tied):
        full, order = similarity[tied].sort(dim=1, descending=True, stable=True)
        near[tied], index[tied] = full[:, : near.shape[1]], order[:, : near.shape[1]]
    return near[:, :k], index[:, :k]
