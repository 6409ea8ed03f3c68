"""k-means of rows that are read a block at a time: Lloyd's passes in fp32, exact, memory of one block."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int

from omma.curation.parts import Forgetful, Parts
from omma.features.vectors import Vectors

ENTRIES = 2**25  # distances in memory at a time: 128 MB
SINGLE = 256  # centroids up to which each is drawn by itself
ROUNDS = 64  # draws beyond that
POOL = 10  # rows to draw the first centroids from, for each of them ...
AT_LEAST = 20_000  # ... but no fewer than this
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Clusters:
    """Centroids, and which is nearest to each row; none is without rows."""

    centroids: Float[np.ndarray, "k d"]
    assignment: Int[np.ndarray, "n"]  # int32
    distances: Float[np.ndarray, "n"]  # squared, to the nearest centroid, >= 0

    @property
    def sizes(self) -> Int[np.ndarray, "k"]:
        return np.bincount(self.assignment, minlength=len(self.centroids))

    @property
    def inertia(self) -> float:
        return float(self.distances.sum(dtype=np.float64))


class _Pass(NamedTuple):
    assignment: np.ndarray
    distances: np.ndarray
    sums: np.ndarray  # fp64 [k, d], of the rows of each cluster


def kmeans(
    vectors: Vectors,
    k: int,
    *,
    seed: int = 0,
    iterations: int = 10,
    tolerance: float = 1e-3,
    device: torch.device = CPU,
    start: Float[np.ndarray, "k d"] | None = None,
    parts: Parts | None = None,
    name: str = "kmeans",
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Clusters:
    """At most k clusters by Lloyd's algorithm from k-means++ centroids [Arthur 2007], Euclidean.

    Ends after `iterations`, or when the sum of squared distances falls by less than the share `tolerance`.
    A cluster that loses its rows moves to the row farthest from its centroid; where there are fewer distinct
    rows than k, there are fewer clusters. start: the first centroids. parts: where centroids are saved after
    each pass under `name`; the same call continues from there, with the same result. tell: passes done,
    and of how many at the most. Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    parts = parts or Forgetful()
    k = min(k, len(vectors))
    if (state := parts.load(name)) is None:
        centroids = first_centroids(vectors, k, np.random.default_rng(seed)) if start is None else start
        state = {"centroids": centroids, "done": np.array(0), "inertia": np.array(math.inf)}
        parts.save(name, **state)
    centroids, inertia = np.asarray(state["centroids"], np.float32), float(state["inertia"])
    for done in range(int(state["done"]), iterations):
        tell(done, iterations)
        found = _pass(vectors, centroids, device)
        now = float(found.distances.sum(dtype=np.float64))
        if now >= (1 - tolerance) * inertia or now == 0:
            break
        centroids, inertia = _means(vectors, centroids, found), now
        parts.save(name, centroids=centroids, done=np.array(done + 1), inertia=np.array(inertia))
    return assign(vectors, centroids, device)


def best_of(vectors: Vectors, k: int, restarts: int, *, seed: int = 0, **options: Any) -> Clusters:
    """The clusters of the least inertia of several runs of `kmeans`, which ends in local optima."""
    runs = (kmeans(vectors, k, seed=seed + 1_000_003 * run, **options) for run in range(restarts))
    return min(runs, key=lambda clusters: clusters.inertia)


def assign(vectors: Vectors, centroids: Float[np.ndarray, "k d"], device: torch.device = CPU) -> Clusters:
    """The nearest centroid of each row; centroids without rows are left out, ties go to the lower one."""
    found = _pass(vectors, centroids, device, sums=False)
    used, compact = np.unique(found.assignment, return_inverse=True)
    return Clusters(centroids[used], compact.astype(np.int32), found.distances)


def nearest_centroids(
    block: Float[np.ndarray, "b d"], centroids: Float[np.ndarray, "k d"], device: torch.device = CPU
) -> tuple[Int[np.ndarray, "b"], Float[np.ndarray, "b"]]:
    """Index of the nearest centroid of each row of a block, and the squared distance to it."""
    return _nearest(torch.from_numpy(block), *_on(centroids, device))


# ---------------------------------------------------------------- first centroids
def first_centroids(vectors: Vectors, k: int, rng: np.random.Generator) -> Float[np.ndarray, "k d"]:
    """At most k distinct rows, drawn with probability proportional to the squared distance to those before.

    From a random part of the rows (10 k of them, or 20,000). Up to 256 are drawn one by one (k-means++);
    more in 64 draws of several at a time, each from the distances after the draw before, as k-means||
    [Bahmani 2012] does: one product of matrices instead of k passes.
    """
    most = max(AT_LEAST, POOL * k)
    n = len(vectors)
    rows = np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))
    sample = torch.from_numpy(vectors.take(rows))
    chosen = [int(rng.integers(len(sample)))]
    distances = _squared(sample, sample[chosen])
    draws = min(k - 1, SINGLE if k <= SINGLE else ROUNDS)
    for draw in range(draws):
        wanted = -(-(k - len(chosen)) // (draws - draw))
        weights = distances.numpy().astype(np.float64)
        wanted = min(wanted, int(np.count_nonzero(weights)))
        if wanted == 0:  # all rows are chosen, or equal to one that is
            break
        drawn = _draw(weights, wanted, rng)
        chosen += drawn.tolist()
        new = sample[torch.from_numpy(drawn)]
        for start in range(0, len(new), 1024):
            distances = torch.minimum(distances, _squared(sample, new[start : start + 1024]))
        distances[torch.from_numpy(drawn)] = 0
    return sample[chosen].numpy()


def _draw(weights: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct rows by weight, without replacement: the largest keys log(u) / w [Efraimidis 2006]."""
    if wanted == 1:
        total = weights.cumsum()
        at = np.searchsorted(total, rng.random() * total[-1], side="right")
        return np.array([min(int(at), int(np.flatnonzero(weights)[-1]))])
    with np.errstate(divide="ignore"):
        keys = np.where(weights > 0, np.log(rng.random(len(weights))) / weights, -np.inf)
    return np.argpartition(-keys, wanted - 1)[:wanted]


def _squared(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Squared distance of each row to the nearest of others; below fp32's noise it is 0."""
    length = rows.square().sum(1)
    size = max(1, ENTRIES // len(others))
    half = others.square().sum(1) / 2
    near = torch.cat([(chunk @ others.T - half).amax(1) for chunk in rows.split(size)])
    distances = length - 2 * near
    return distances.where(distances > 1e-6 * length, torch.zeros(()))


# ---------------------------------------------------------------- one pass
def _pass(vectors: Vectors, centroids: np.ndarray, device: torch.device, sums: bool = True) -> _Pass:
    """The nearest centroid of all rows, and the sums of rows of each centroid."""
    n, k = len(vectors), len(centroids)
    found = _Pass(
        np.empty(n, np.int32), np.empty(n, np.float32), np.zeros((k, vectors.dim) if sums else (0, 0))
    )
    on_device = _on(centroids, device)
    at = 0
    for block in vectors.blocks():
        index, distances = _nearest(torch.from_numpy(block), *on_device)
        part = slice(at, at + len(block))
        found.assignment[part], found.distances[part] = index, distances
        if sums:  # a sparse product adds rows up in a fixed order
            ones = np.ones(len(block), np.float32)
            which = scipy.sparse.csr_matrix((ones, (index, np.arange(len(block)))), (k, len(block)))
            np.add(found.sums, which @ block, out=found.sums)
        at += len(block)
    return found


def _on(centroids: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    own = torch.from_numpy(np.ascontiguousarray(centroids, np.float32)).to(device)
    return own, own.square().sum(1) / 2


@torch.inference_mode()
def _nearest(
    block: torch.Tensor, centroids: torch.Tensor, half: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """argmin |x - c|^2 = argmax x.c - |c|^2 / 2."""
    index, distances = [], []
    for chunk in block.split(max(1, ENTRIES // len(centroids))):
        moved = chunk.to(centroids.device)
        best, at = torch.addmm(-half, moved, centroids.T).max(1)
        index.append(at.cpu())
        distances.append((moved.square().sum(1) - 2 * best).clamp(min=0).cpu())
    return torch.cat(index).numpy().astype(np.int32), torch.cat(distances).numpy()


def _means(vectors: Vectors, centroids: np.ndarray, found: _Pass) -> np.ndarray:
    """New centroids: the means of their rows; those without rows move to the rows farthest from theirs."""
    counts = np.bincount(found.assignment, minlength=len(centroids))
    means = (found.sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        order = np.argsort(-found.distances, kind="stable")[: len(empty)]
        far = order[found.distances[order] > 0]
        means[empty] = centroids[empty]
        means[empty[: len(far)]] = vectors.take(far)
    return means
