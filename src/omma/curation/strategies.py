"""The strategies by which images are chosen, each as rows with reasons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.core.progress import StageProgress
from omma.core.words import count
from omma.curation.coreset import k_center
from omma.curation.hierarchical import Hierarchy, build, check_levels, default_levels, drawn, shares, silent
from omma.curation.kmeans import CPU, nearest_centroids
from omma.curation.parts import Forgetful, Parts
from omma.curation.retrieval import retrieve
from omma.curation.typicality import typiclust
from omma.curation.uncertainty import entropy, margin
from omma.features.vectors import Vectors

# of a pool that is in part labelled, these choose among the rest
LABELLING = ("coreset", "typical", "margin", "entropy")
STRATEGIES = ("balanced", *LABELLING, "random")
UNSURE = ("margin", "entropy")  # these need a classifier
CANDIDATES = 200_000  # rows in memory at a time, of strategies that compare all with all


@dataclass(frozen=True)
class Seed:
    """Images that the chosen ones should be like."""

    vectors: Float[np.ndarray, "q d"]  # unit
    paths: Sequence[str]


@dataclass(frozen=True)
class Task:
    """What to choose from, and how many."""

    vectors: Vectors  # unit
    size: int  # fewer than there are
    labelled: Float[np.ndarray, "m d"]  # unit vectors of images that are chosen already
    rng: np.random.Generator
    seed: int = 0
    levels: Sequence[int] | None = None  # None: `default_levels`
    device: torch.device = CPU
    parts: Parts = field(default_factory=Forgetful)
    probabilities: Float[np.ndarray, "n k"] | None = None  # of a classifier
    queries: Seed | None = None
    progress: StageProgress = silent


@dataclass(frozen=True)
class Chosen:
    """Rows with what a list says of each."""

    rows: Int[np.ndarray, "m"]
    why: list[str]
    weight: Float[np.ndarray, "m"]  # images of the pool that each stands for; nan: does not apply
    clusters: Int[np.ndarray, "m t"] | None = None  # of each level, the finest first
    notes: tuple[str, ...] = ()


def choose(strategy: str, task: Task) -> Chosen:
    """`task.size` rows by a strategy, or fewer where it says so in its notes; all rows if there are no more.

    With queries: those near them, whatever the strategy.
    """
    if task.size >= len(task.vectors):
        rows = np.arange(len(task.vectors))
        notes = (f"only {count(len(rows), 'image')} to choose from: all are listed",)
        return Chosen(rows, ["all are chosen"] * len(rows), np.ones(len(rows)), notes=notes)
    return _retrieved(task) if task.queries is not None else _BY_NAME[strategy](task)


def _hierarchy(task: Task) -> Hierarchy:
    levels = task.levels
    if levels is None:
        levels = default_levels(len(task.vectors))
    check_levels(levels, len(task.vectors))
    return build(
        task.vectors, levels, seed=task.seed, device=task.device, parts=task.parts, progress=task.progress
    )


def _shown(hierarchy: Hierarchy) -> str:
    sizes = [f"{len(level.centroids):,}" for level in hierarchy.levels]
    return f"clusters, the finest level first: {', '.join(sizes)}"


def _balanced(task: Task) -> Chosen:
    hierarchy = _hierarchy(task)
    finest = hierarchy.levels[0]
    held = None
    if len(task.labelled):
        near = nearest_centroids(np.ascontiguousarray(task.labelled, np.float32), finest.centroids)[0]
        held = np.bincount(near, minlength=len(finest.centroids))
    taken = shares(hierarchy, task.size, task.rng, held)
    rows = drawn(finest, taken, task.rng)
    own, sizes = finest.assignment[rows], finest.sizes
    why = [f"{taken[c]} of {count(int(sizes[c]), 'image')} of its cluster" for c in own]
    return Chosen(rows, why, sizes[own] / taken[own], hierarchy.of_rows()[rows], (_shown(hierarchy),))


def _coreset(task: Task) -> Chosen:
    rows, sample, notes = _candidates(task)
    found = k_center(sample, task.size, task.labelled if len(task.labelled) else None)
    why = [
        f"farthest from those before: {d:.3f}" if np.isfinite(d) else "nearest to the mean"
        for d in found.distance
    ]
    stands = np.bincount(found.nearest[found.nearest >= 0], minlength=len(found.rows))
    notes += (f"no image is farther than {found.radius:.3f} from a chosen one (of unit vectors, at most 2)",)
    if len(found.rows) < task.size:
        notes += (f"{count(len(found.rows), 'image')} chosen: all others equal them or labelled ones",)
    return Chosen(rows[found.rows], why, stands * (len(task.vectors) / len(rows)), notes=notes)


def _typical(task: Task) -> Chosen:
    rows, sample, notes = _candidates(task)
    known = len(task.labelled)
    both = np.concatenate([task.labelled, sample]) if known else sample
    found = typiclust(both, task.size, np.arange(known), task.seed)
    why = [
        f"typicality {t:.2f} in a cluster of {count(int(s), 'image')}"
        for t, s in zip(found.typicality, found.sizes)
    ]
    scale = len(task.vectors) / len(rows)
    _, again, shared = np.unique(found.cluster, return_inverse=True, return_counts=True)
    return Chosen(rows[found.rows - known], why, scale * found.sizes / shared[again], notes=notes)


def _unsure(score: Callable[[np.ndarray], np.ndarray], name: str) -> Callable[[Task], Chosen]:
    def chosen(task: Task) -> Chosen:
        assert task.probabilities is not None, "the caller has made sure"
        value = score(task.probabilities)
        rows = np.argsort(-value, kind="stable")[: task.size]
        why = [f"{name} {value[row]:.3f}" for row in rows]
        return Chosen(rows, why, np.full(len(rows), np.nan))

    return chosen


def _random(task: Task) -> Chosen:
    rows = np.sort(task.rng.choice(len(task.vectors), task.size, replace=False))
    return Chosen(rows, ["random"] * task.size, np.full(task.size, len(task.vectors) / task.size))


def _retrieved(task: Task) -> Chosen:
    queries = task.queries
    assert queries is not None
    enough = 4 * len(queries.vectors) >= 2 * task.size
    hierarchy = None if enough else _hierarchy(task)
    clusters = None if hierarchy is None else hierarchy.levels[0]
    found = retrieve(queries.vectors, task.vectors, task.size, task.rng, clusters)
    why = [
        "in the cluster of a seed image" if query < 0 else f"near {queries.paths[query]} ({similarity:.3f})"
        for query, similarity in zip(found.query.tolist(), found.similarity.tolist())
    ]
    notes = () if hierarchy is None else (_shown(hierarchy),)
    if len(found.rows) < task.size:
        notes += (
            f"{count(len(found.rows), 'image')} chosen, fewer than {task.size:,}: the clusters of the seed "
            "set have no more; give more seed images, or --levels of fewer clusters",
        )
    places = None if hierarchy is None else hierarchy.of_rows()[found.rows]
    return Chosen(found.rows, why, np.full(len(found.rows), np.nan), places, notes)


def _candidates(task: Task) -> tuple[np.ndarray, Float[np.ndarray, "n d"], tuple[str, ...]]:
    """The rows to choose from, in memory: all, or a random part."""
    n = len(task.vectors)
    if n <= CANDIDATES:
        return np.arange(n), task.vectors.take(np.arange(n)), ()
    rows = np.sort(task.rng.choice(n, CANDIDATES, replace=False))
    return rows, task.vectors.take(rows), (f"chosen among {CANDIDATES:,} random images of {n:,}",)


_BY_NAME: dict[str, Callable[[Task], Chosen]] = {
    "balanced": _balanced,
    "coreset": _coreset,
    "typical": _typical,
    "margin": _unsure(margin, "unsure: 1 - margin"),
    "entropy": _unsure(entropy, "unsure: entropy"),
    "random": _random,
}
