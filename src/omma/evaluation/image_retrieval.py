"""Retrieval of images by an image: recall@k and mean average precision among all other images.

Recall@k is that of metric learning [Jegou 2011; Song 2016, arXiv 1511.06452]: the share of queries with an
image of their own group among the k nearest. The query is not part of the gallery.
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
    gallery: int  # images that each query is compared with


def ranked(vectors: Float[np.ndarray, "n d"], groups: Int[np.ndarray, "n"]) -> Ranked:
    """Rank all other images by their cosine with each; vectors: unit, groups: equal numbers belong together.

    Ties count against the model, so that one which maps all images to the same vector retrieves nothing.
    """
    n = len(groups)
    members = np.bincount(groups, minlength=1)[groups]
    queries = np.flatnonzero(members > 1)
    first, precision = np.empty(len(queries), np.int64), np.empty(len(queries))
    for start in range(0, len(queries), BLOCK):
        rows = queries[start : start + BLOCK]
        for k, near in zip(range(start, start + len(rows)), vectors[rows] @ vectors.T, strict=True):
            own = groups == groups[queries[k]]
            wrong = np.sort(near[~own])
            own[queries[k]] = False
            right = np.sort(near[own])[::-1]
            above = len(wrong) - np.searchsorted(wrong, right, side="left")
            hits = np.arange(1, len(right) + 1)
            first[k], precision[k] = above[0], (hits / (above + hits)).mean()
    return Ranked(queries, first, precision, members[queries] - 1, n - 1)


def figures(found: Ranked, level: str, seed: int = 0) -> Iterator[tuple[str, Figure, float]]:
    """Name, value with the interval over queries, and the recall that random vectors are expected to have.

    For mAP that is the share of right images in the gallery. level: "category" or "instance".
    """
    for k in KS:
        hits = found.first < k
        chance = np.mean([1 - missed(found.gallery, int(c), k) for c in found.others])
        figure = Figure(float(hits.mean()), confidence.bootstrap(hits, seed))
        yield f"recall@{k}, {level}", figure, float(chance)
    interval = confidence.mean(found.precision, seed)
    chance = float((found.others / found.gallery).mean())
    yield f"mAP, {level}", Figure(float(found.precision.mean()), interval), chance
