"""Retrieval of images by an image: recall@k and mean average precision among all other images.

Recall@k is that of metric learning [Jegou 2011; Song 2016, arXiv 1511.06452]: the share of queries with an
image of their own group among the k nearest. The query is not part of the gallery; where images of a sequence
belong together, neither is the rest of its sequence.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from omma.evaluation import confidence
from omma.evaluation.metrics import Figure
from omma.evaluation.retrieval import KS, missed

BLOCK = 512  # queries whose similarities are in memory at a time


class Ranked(NamedTuple):
    """The queries that have another image of their group, and where those stand."""

    queries: Int[np.ndarray, "q"]  # rows
    first: Int[np.ndarray, "q"]  # images of other groups that are at least as near as the nearest of the own
    precision: Float[np.ndarray, "q"]  # average precision, 0 to 1
    others: Int[np.ndarray, "q"]  # further images of the query's group
    galleries: Int[np.ndarray, "q"]  # images that each query is compared with

    @property
    def gallery(self) -> int:
        """The largest gallery; all are alike unless some images are left out."""
        return int(self.galleries.max(initial=0))


def ranked(
    vectors: Float[np.ndarray, "n d"],
    groups: Int[np.ndarray, "n"],
    apart: Int[np.ndarray, "n"] | None = None,
) -> Ranked:
    """Rank all other images by their cosine with each; vectors: unit, groups: equal numbers belong together.

    Ties count against the model, so that one which maps all images to the same vector retrieves nothing.
    apart: images of an equal number are in no gallery of each other.
    """
    n = len(groups)
    apart = np.arange(n) if apart is None else np.unique(apart, return_inverse=True)[1].reshape(-1)
    members = np.bincount(groups, minlength=1)[groups]
    both = np.stack([groups, apart])
    _, kind, alike = np.unique(both, axis=1, return_inverse=True, return_counts=True)
    members = members - alike[kind.reshape(-1)]
    queries = np.flatnonzero(members > 0)
    first, precision = np.empty(len(queries), np.int64), np.empty(len(queries))
    for start in range(0, len(queries), BLOCK):
        rows = queries[start : start + BLOCK]
        for k, near in zip(range(start, start + len(rows)), vectors[rows] @ vectors.T, strict=True):
            own, other = groups == groups[queries[k]], apart != apart[queries[k]]
            wrong = np.sort(near[~own & other])
            right = np.sort(near[own & other])[::-1]
            above = len(wrong) - np.searchsorted(wrong, right, side="left")
            hits = np.arange(1, len(right) + 1)
            first[k], precision[k] = above[0], (hits / (above + hits)).mean()
    galleries = n - np.bincount(apart)[apart[queries]]
    return Ranked(queries, first, precision, members[queries], galleries)


def figures(
    found: Ranked, level: str, seed: int = 0, groups: Int[np.ndarray, "q"] | None = None
) -> Iterator[tuple[str, Figure, float]]:
    """Name, value with the interval over queries, and the recall that random vectors are expected to have.

    For mAP that is the share of right images in the gallery. level: "category" or "instance". groups: of the
    queries, of which intervals draw whole ones.
    """
    for k in KS:
        hits = found.first < k
        sizes = zip(found.galleries.tolist(), found.others.tolist(), strict=True)
        chance = np.mean([1 - missed(gallery, others, k) for gallery, others in sizes])
        figure = Figure(float(hits.mean()), confidence.bootstrap(hits, seed, groups=groups))
        yield f"recall@{k}, {level}", figure, float(chance)
    interval = confidence.mean(found.precision, seed, groups)
    chance = float((found.others / found.galleries).mean())
    yield f"mAP, {level}", Figure(float(found.precision.mean()), interval), chance
