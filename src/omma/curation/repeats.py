"""Near-copies within a pool, by vectors alone: one of each group stays [Oquab 2023, 2304.07193, appendix A].

A graph joins each row with those of its 64 nearest that are similar enough; of each connected component the
first row is kept. Above 100,000 rows neighbours are sought within clusters, as SemDeDup does
[Abbas 2023, arXiv 2303.09540]: all pairs would take days.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components

from omma.curation.kmeans import CPU, kmeans
from omma.curation.parts import Forgetful, Parts
from omma.features.vectors import Vectors
from omma.ops.nearest import nearest

NEIGHBOURS = 64
EXACT = 100_000  # rows that are all compared with each other
CLUSTER = 1000  # rows of a cluster beyond that, on average
SAMPLE = 4096  # rows, whose 8 million pairs calibrate the threshold
FALSE_COPIES = 0.01  # others that an image is taken for a copy of by chance, on average
CLOSEST = 1e-5  # distance 1 - similarity within which fp32 tells nothing apart


@dataclass(frozen=True)
class Kept:
    """What is left of a pool."""

    rows: Int[np.ndarray, "m"]  # ascending
    largest: int  # rows of the largest group, of which one stays
    exact: bool  # whether all pairs were compared

    @property
    def count(self) -> int:
        return len(self.rows)


def calibrated(vectors: Vectors, rng: np.random.Generator, false_copies: float = FALSE_COPIES) -> float:
    """The similarity above which an image has `false_copies` others by chance, on average; of unit vectors.

    That is the share p = false_copies / n of random pairs. Rows of intrinsic dimension D have a share
    p ~ (1 - s)^(D / 2) of pairs above a similarity s near 1 [Grassberger 1983]; the line is drawn in
    logarithms through shares of 1e-3 and 1e-4 of 8 million pairs (of larger ones where there are few), so
    that true copies, which are rarer, do not bend it. At most 1 - 1e-5, which equal images exceed.
    """
    n = len(vectors)
    rows = np.arange(n) if n <= SAMPLE else np.sort(rng.choice(n, SAMPLE, replace=False))
    sample = torch.from_numpy(vectors.take(rows))
    apart = 1 - (sample @ sample.T)[tuple(torch.triu_indices(len(sample), len(sample), 1))].numpy()
    few, many = max(1e-4, 30 / max(len(apart), 1)), max(1e-3, 300 / max(len(apart), 1))
    if many >= 1:  # too few images to tell: only equal ones are copies
        return 1 - CLOSEST
    near, far = np.maximum(np.quantile(apart, (few, many)), CLOSEST)
    steepness = np.log(far / near) / np.log(many / few)
    wanted = min(false_copies / n, few)
    return 1 - max(float(near * (wanted / few) ** steepness), CLOSEST)


def without_repeats(
    vectors: Vectors,
    similarity: float,
    *,
    seed: int = 0,
    device: torch.device = CPU,
    parts: Parts | None = None,
    exact: int = EXACT,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Kept:
    """The rows that stay if of rows whose inner product exceeds `similarity` one is kept; of unit vectors.

    parts: the result is saved there under "repeats". exact: rows up to which all pairs are compared.
    tell: rows looked at, and in all.
    """
    parts = parts or Forgetful()
    if (saved := parts.load("repeats")) is None:
        groups = _all(len(vectors)) if len(vectors) <= exact else _clusters(vectors, seed, device, parts)
        keep, largest, done = np.zeros(len(vectors), bool), 1, 0
        for rows in groups:
            first, size = _first_of_each(vectors.take(rows), similarity)
            keep[rows[first]] = True
            largest, done = max(largest, size), done + len(rows)
            tell(done, len(vectors))
        saved = {"rows": np.flatnonzero(keep), "largest": np.array(largest)}
        parts.save("repeats", **saved)
        parts.remove("repeats-clusters")
    return Kept(saved["rows"], int(saved["largest"]), len(vectors) <= exact)


def _all(n: int) -> Iterator[np.ndarray]:
    yield np.arange(n)


def _clusters(vectors: Vectors, seed: int, device: torch.device, parts: Parts) -> Iterator[np.ndarray]:
    """The rows of each cluster, ascending."""
    clusters = kmeans(
        vectors, len(vectors) // CLUSTER, seed=seed, iterations=5, device=device,
        parts=parts, name="repeats-clusters",
    )  # fmt: skip
    order = np.argsort(clusters.assignment, kind="stable")
    yield from np.split(order, np.cumsum(clusters.sizes)[:-1])


def _first_of_each(rows: Float[np.ndarray, "n d"], similarity: float) -> tuple[np.ndarray, int]:
    """The first row of each component, and the number of rows of the largest one."""
    n = len(rows)
    if n < 2:
        return np.arange(n), n
    found = nearest(None, rows, NEIGHBOURS)
    i, j = np.nonzero(found.similarities > similarity)
    graph = scipy.sparse.coo_matrix((np.ones(len(i), bool), (i, found.indices[i, j])), (n, n))
    _, component = connected_components(graph, directed=False)
    _, first, sizes = np.unique(component, return_index=True, return_counts=True)
    return np.sort(first), int(sizes.max())
