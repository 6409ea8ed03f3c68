"""TypiClust: the most typical image of each cluster, for small budgets [Hacohen 2022, arXiv 2202.02794]."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from omma.curation.kmeans import kmeans
from omma.features.vectors import ArrayVectors
from omma.ops.nearest import nearest

NEIGHBOURS = 20
MOST = 500  # clusters
SMALLEST = 5  # rows of a cluster that is heeded


@dataclass(frozen=True)
class Typical:
    """Rows in the order in which they were chosen."""

    rows: Int[np.ndarray, "m"]
    typicality: Float[np.ndarray, "m"]
    cluster: Int[np.ndarray, "m"]
    sizes: Int[np.ndarray, "m"]  # rows of that cluster


def typicality(vectors: Float[np.ndarray, "n d"], neighbours: int = NEIGHBOURS) -> Float[np.ndarray, "n"]:
    """1 / mean distance to the nearest rows (20, or all there are) [Hacohen 2022, eq. 4], of unit vectors.

    inf where these are equal to the row; 0 for a single row.
    """
    if len(vectors) < 2:
        return np.zeros(len(vectors), np.float32)
    similarity = nearest(None, vectors, neighbours).similarities
    distance = np.sqrt(np.clip(2 - 2 * similarity, 0, None)).mean(1)
    with np.errstate(divide="ignore"):
        return 1 / distance


def typiclust(
    vectors: Float[np.ndarray, "n d"], k: int, labelled: Int[np.ndarray, "m"], seed: int = 0
) -> Typical:
    """k rows beside the `labelled` ones [Hacohen 2022, algorithm 1], of unit vectors.

    The rows are divided into as many clusters as there will be labelled images (at most 500), so that each
    new one can be in a cluster without labels. One at a time, from the largest of the clusters with the
    fewest labelled rows, the most typical row is chosen. Clusters of fewer than 5 rows come last.
    """
    clusters = kmeans(ArrayVectors(vectors), min(MOST, len(labelled) + k), seed=seed)
    assignment, sizes = clusters.assignment, clusters.sizes
    busy = np.bincount(assignment[labelled], minlength=len(sizes))
    free = np.ones(len(vectors), bool)
    free[labelled] = False
    order = np.argsort(assignment, kind="stable")
    members = np.split(order, np.cumsum(sizes)[:-1])
    queues: dict[int, list[int]] = {}
    value = np.zeros(len(vectors), np.float32)
    left = np.bincount(assignment[free], minlength=len(sizes))
    chosen: list[int] = []
    while len(chosen) < k and left.any():
        ranks = np.lexsort((-sizes, busy, sizes < SMALLEST, left == 0))
        cluster = int(ranks[0])
        if cluster not in queues:
            own = members[cluster]
            value[own] = typicality(vectors[own])
            own = own[free[own]]
            queues[cluster] = own[np.argsort(value[own], kind="stable")].tolist()
        chosen.append(queues[cluster].pop())
        busy[cluster] += 1
        left[cluster] -= 1
    rows = np.array(chosen, np.int64)
    return Typical(rows, value[rows], assignment[rows], sizes[assignment[rows]])
