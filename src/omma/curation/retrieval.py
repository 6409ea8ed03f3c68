"""Images of a pool that are near those of a seed set, and those too near to a set of evaluation.

As for DINOv2's data [Oquab 2023, arXiv 2304.07193, §3 and appendix A]: the nearest 4 of each image of the
seed set, and images of its cluster where these are too few.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from omma.curation.hierarchical import drawn, water_fill
from omma.curation.kmeans import Clusters, nearest_centroids
from omma.features.vectors import Vectors
from omma.ops.nearest import Neighbours, top

PER_QUERY = 4
PRODUCTS = 2**25  # similarities in memory at a time: 128 MB


@torch.inference_mode()
def nearest_of(queries: Float[np.ndarray, "q d"], vectors: Vectors, k: int) -> Neighbours:
    """The k rows (at most all) with the largest inner product for each query, in one pass over the blocks."""
    asked = torch.from_numpy(np.ascontiguousarray(queries, np.float32))
    k = min(k, len(vectors))
    near, at = asked.new_zeros((len(asked), 0)), torch.zeros((len(asked), 0), dtype=torch.long)
    start = 0
    for block in vectors.blocks(max(1024, PRODUCTS // max(len(asked), 1))):
        rows = torch.from_numpy(block)
        for part in range(0, len(rows), size := max(1, PRODUCTS // max(len(asked), 1))):
            similarity = asked @ rows[part : part + size].T
            own, index = top(similarity, min(k, similarity.shape[1]))
            near, at = torch.cat([near, own], 1), torch.cat([at, index + start + part], 1)
            order = torch.from_numpy(np.lexsort((at.numpy(), -near.numpy()))[:, :k])
            near, at = near.gather(1, order), at.gather(1, order)
        start += len(block)
    return Neighbours(near.numpy(), at.numpy())


@torch.inference_mode()
def similar(vectors: Vectors, others: Float[np.ndarray, "m d"], threshold: float) -> Bool[np.ndarray, "n"]:
    """Which rows have an inner product above the threshold with any of the others."""
    base = torch.from_numpy(np.ascontiguousarray(others, np.float32))
    found = [np.zeros(0, bool)]
    for block in vectors.blocks():
        for chunk in torch.from_numpy(block).split(max(1, PRODUCTS // max(len(base), 1))):
            found.append(((chunk @ base.T).amax(1) > threshold).numpy())
    return np.concatenate(found)


@dataclass(frozen=True)
class Retrieved:
    """Rows chosen for queries; the last ones, from clusters, have no similarity."""

    rows: Int[np.ndarray, "m"]
    query: Int[np.ndarray, "m"]  # whose neighbour it is; -1: from the cluster of one
    similarity: Float[np.ndarray, "m"]  # nan: from a cluster


def retrieve(
    queries: Float[np.ndarray, "q d"],
    vectors: Vectors,
    target: int,
    rng: np.random.Generator,
    clusters: Clusters | None = None,
    per_query: int = PER_QUERY,
) -> Retrieved:
    """At most `target` rows for the queries, each query an equal share.

    First the nearest of all queries, then the second nearest, up to `per_query`; then random rows of the
    clusters in which queries lie, of each the same number as far as it has them. Without clusters, further
    neighbours instead. There may be fewer than `target`: other rows are not like the seed set.
    """
    if clusters is None:
        per_query = max(per_query, -(-2 * target // len(queries)))
    near = nearest_of(queries, vectors, per_query)
    order = near.indices.T.ravel()  # by rank, then by query
    _, first = np.unique(order, return_index=True)
    first = np.sort(first)[:target]
    rows, query = order[first], first % len(queries)
    similarity = near.similarities.T.ravel()[first]
    left = target - len(rows)
    if clusters is not None and left:
        own = np.unique(nearest_centroids(np.ascontiguousarray(queries, np.float32), clusters.centroids)[0])
        free = np.isin(clusters.assignment, own)
        free[rows] = False
        candidates = np.flatnonzero(free)
        within = clusters.assignment[candidates]
        sizes = np.bincount(within, minlength=len(clusters.centroids))
        held = np.bincount(clusters.assignment[rows], minlength=len(clusters.centroids))
        taken = water_fill(sizes, left, np.where(sizes > 0, held, 0), rng)
        part = Clusters(clusters.centroids, within, clusters.distances[candidates])
        more = candidates[drawn(part, taken, rng)]
        rows = np.concatenate([rows, more])
        query = np.concatenate([query, np.full(len(more), -1)])
        similarity = np.concatenate([similarity, np.full(len(more), np.nan, np.float32)])
    return Retrieved(rows, query, similarity)
