"""Balanced selection by hierarchical k-means with resampling, from the paper [Vo 2024, arXiv 2405.15613].

k-means puts more centroids where more points lie; k-means of centroids, level upon level, spreads them ever
more evenly over what there is, and a selection that gives each cluster of each level its equal share, as far
as it has points, is balanced over concepts rather than over images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from omma.core.progress import StageProgress
from omma.curation.kmeans import CPU, Clusters, assign, best_of, kmeans
from omma.curation.parts import Forgetful, Parts
from omma.features.vectors import ArrayVectors, Vectors

NEAREST = 10  # rows of each cluster that are clustered again, at the most
FEW = 2**17  # rows x clusters up to which k-means ...
RESTARTS = 3  # ... is run so many times, and the best kept


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True)
class Hierarchy:
    """Clusters of rows, clusters of their centroids, and so on: the finest level first."""

    levels: tuple[Clusters, ...]

    def of_rows(self) -> Int[np.ndarray, "n t"]:
        """The cluster of each row at each level, int32."""
        columns = [self.levels[0].assignment]
        for level in self.levels[1:]:
            columns.append(level.assignment[columns[-1]])
        return np.stack(columns, axis=1)


def default_levels(n: int) -> tuple[int, ...]:
    """Clusters of each level for n rows, the finest first: 10 sqrt(n), or a tenth of n; then a tenth each.

    Down to the last level of at least 10. 1,000 rows: 100, 10; a million: 10,000, 1,000, 100, 10.
    """
    levels = [max(1, min(n // 10, round(10 * n**0.5)))]
    while levels[-1] >= 100:
        levels.append(levels[-1] // 10)
    return tuple(levels)


def build(
    vectors: Vectors,
    levels: Sequence[int],
    *,
    seed: int = 0,
    rounds: Sequence[int] | None = None,
    iterations: int = 10,
    device: torch.device = CPU,
    parts: Parts | None = None,
    progress: StageProgress = silent,
) -> Hierarchy:
    """k-means at each level, followed by rounds of resampling [Vo 2024, algorithm 1].

    In a round, the rows nearest to each centroid (half a mean cluster, 2 to 10) are clustered again: few
    of them stand for a dense place as for a thin one, which evens the centroids out. Then all rows go to the
    nearest new centroid.
    levels: clusters of each, the finest first, descending. rounds: of each level; by default 2 of the finest
    and 10 of those above, which are small. parts: what is done is saved there and never done again.
    """
    check_levels(levels, len(vectors))
    rounds = [2] + [10] * (len(levels) - 1) if rounds is None else rounds
    parts, made, below = parts or Forgetful(), list[Clusters](), vectors
    for number, (k, repeats) in enumerate(zip(levels, rounds, strict=True), start=1):
        name = f"level-{number}"
        if (saved := parts.load(name)) is None:
            tell = partial(progress, f"clustering level {number} of {len(levels)}")
            options: Any = {
                "tell": tell,
                "seed": seed + 100 * number,
                "iterations": iterations,
                "device": device,
            }
            level = _clustered(below, k, parts=parts, name=f"{name}-start", **options)
            level = _resampled(below, level, repeats, parts, name, **options)
            parts.save(name, **asdict(level))
        else:
            level = _level(saved)
        for part in ("start", "round"):
            parts.remove(f"{name}-{part}")
        made.append(level)
        below = ArrayVectors(level.centroids)
    return Hierarchy(tuple(made))


def _level(saved: Mapping[str, np.ndarray]) -> Clusters:
    return Clusters(saved["centroids"], saved["assignment"], saved["distances"])


def check_levels(levels: Sequence[int], n: int) -> None:
    """Raise ValueError, in one line, unless the numbers of clusters descend from at most n to at least 1."""
    if not levels or list(levels) != sorted(set(levels), reverse=True) or levels[-1] < 1 or levels[0] > n:
        shown = ",".join(map(str, levels)) or "none"
        raise ValueError(
            f"levels {shown}: give numbers of clusters that descend, from at most {n} (the images) down to 1"
        )


def _clustered(vectors: Vectors, k: int, **options: Any) -> Clusters:
    """k-means; of several where that costs little: a bad start cannot be mended further up."""
    if len(vectors) * k <= FEW:
        return best_of(vectors, k, RESTARTS, **{**options, "parts": None})
    return kmeans(vectors, k, **options)


def _resampled(
    vectors: Vectors, level: Clusters, rounds: int, parts: Parts, name: str, *, seed: int, **options: Any
) -> Clusters:
    done = 0
    if (saved := parts.load(f"{name}-round")) is not None:
        level, done = _level(saved), int(saved["done"])
    size = int(np.clip(len(vectors) // (2 * len(level.centroids)), 2, NEAREST))
    for number in range(done, rounds):
        few = ArrayVectors(vectors.take(np.sort(nearest_rows(level, size))))
        again = _clustered(few, len(level.centroids), seed=seed + number + 1, **options)
        level = assign(vectors, again.centroids, options["device"])
        parts.save(f"{name}-round", done=np.array(number + 1), **asdict(level))
    return level


def nearest_rows(clusters: Clusters, most: int) -> Int[np.ndarray, "m"]:
    """The rows nearest to each centroid, at most so many of each, cluster by cluster."""
    order = np.lexsort((clusters.distances, clusters.assignment))
    return order[_rank(clusters.assignment[order]) < most]


def _rank(ordered: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The place of each row within its cluster; rows of a cluster lie side by side."""
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    return np.arange(len(ordered)) - np.repeat(starts, np.diff(starts, append=len(ordered)))


# ---------------------------------------------------------------- shares
def water_fill(
    sizes: Int[np.ndarray, "k"],
    target: int,
    held: Int[np.ndarray, "k"] | None = None,
    rng: np.random.Generator | None = None,
) -> Int[np.ndarray, "k"]:
    """How many to take of each cluster: min(x, size), with x such that they sum to `target` [Vo 2024, §3.4].

    As vessels are filled to one level x. held: what is chosen of each already, on top of `sizes`; then it is
    min(max(x - held, 0), size). x is whole; what is left over goes, one each, to clusters drawn by `rng`
    (to the first ones without it) of those that have more. Sums to min(target, sizes.sum()).
    """
    sizes = np.asarray(sizes, np.int64)
    held = np.zeros_like(sizes) if held is None else np.asarray(held, np.int64)
    target = int(min(target, sizes.sum()))
    low, high = 0, int((sizes + held).max(initial=0))  # filled(low) <= target, and most levels lie between
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _filled(sizes, held, middle).sum() <= target else (low, middle - 1)
    taken = _filled(sizes, held, low)
    open_ = np.flatnonzero((taken < sizes) & (held <= low))
    left = target - int(taken.sum())
    more = open_[:left] if rng is None else rng.permutation(open_)[:left]
    taken[more] += 1
    return taken


def _filled(sizes: np.ndarray, held: np.ndarray, level: int) -> np.ndarray:
    return np.clip(level - held, 0, sizes)


def shares(
    hierarchy: Hierarchy,
    target: int,
    rng: np.random.Generator,
    held: Int[np.ndarray, "k"] | None = None,
) -> Int[np.ndarray, "k"]:
    """How many rows to take of each cluster of the finest level: equal shares from the top down.

    held: rows chosen already of each of these clusters.
    """
    sizes = [hierarchy.levels[0].sizes]
    holds = [np.zeros_like(sizes[0]) if held is None else np.asarray(held, np.int64)]
    for level in hierarchy.levels[1:]:
        k = len(level.centroids)
        sizes.append(np.bincount(level.assignment, sizes[-1], k).astype(np.int64))
        holds.append(np.bincount(level.assignment, holds[-1], k).astype(np.int64))
    taken = water_fill(sizes[-1], target, holds[-1], rng)
    for depth in range(len(hierarchy.levels) - 1, 0, -1):
        parents = hierarchy.levels[depth].assignment
        order = np.argsort(parents, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(parents[order])) + 1)
        below = np.zeros_like(sizes[depth - 1])
        for children in groups:
            share = int(taken[parents[children[0]]])
            if share:
                below[children] = water_fill(
                    sizes[depth - 1][children], share, holds[depth - 1][children], rng
                )
        taken = below
    return taken


def drawn(clusters: Clusters, taken: Int[np.ndarray, "k"], rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """So many random rows of each cluster, by ascending number."""
    order = np.lexsort((rng.random(len(clusters.assignment)), clusters.assignment))
    ordered = clusters.assignment[order]
    return np.sort(order[_rank(ordered) < taken[ordered]])
