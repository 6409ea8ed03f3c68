"""Retrieval between images and captions: recall@k in both directions [Radford 2021, arXiv 2103.00020]."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

KS = (1, 5, 10)
BLOCK = 1024  # queries whose similarities are held at a time


class Ranks(NamedTuple):
    """How many wrong answers are at least as near as the (nearest) right one; 0 is found at once.

    A tie counts against the model, so that one which gives every image the same vector finds nothing.
    """

    captions: Int[np.ndarray, "n"]  # for each image, of the captions
    images: Int[np.ndarray, "m"]  # for each caption, of the images
    owner: Int[np.ndarray, "m"]  # whose each caption is


class Recall(NamedTuple):
    """One figure, with what its interval is drawn from: queries that belong together lie in one row."""

    metric: str
    hits: Int[np.ndarray, "n"]  # of each image's queries, those answered within k
    queries: Int[np.ndarray, "n"]
    chance: float  # what random vectors would score

    @property
    def value(self) -> float:
        return float(self.hits.sum() / self.queries.sum())


def ranks(
    images: Float[np.ndarray, "n o"], captions: Float[np.ndarray, "m o"], owner: Int[np.ndarray, "m"]
) -> Ranks:
    """Of unit vectors; caption j is of image owner[j], and every image has one at least."""
    n, m = len(images), len(captions)
    of_images, of_captions = np.empty(n, np.int64), np.empty(m, np.int64)
    for first in range(0, n, BLOCK):
        rows = np.arange(first, min(first + BLOCK, n))
        near = images[rows] @ captions.T
        own = owner[None] == rows[:, None]
        best = np.where(own, near, -np.inf).max(1, keepdims=True)
        of_images[rows] = ((near >= best) & ~own).sum(1)
    for first in range(0, m, BLOCK):
        rows = np.arange(first, min(first + BLOCK, m))
        near = captions[rows] @ images.T
        best = near[np.arange(len(rows)), owner[rows]]
        of_captions[rows] = (near >= best[:, None]).sum(1) - 1
    return Ranks(of_images, of_captions, owner)


def recalls(found: Ranks) -> Iterator[Recall]:
    """recall@1, 5 and 10 of captions for images and of images for captions."""
    n, m = len(found.captions), len(found.images)
    own = np.bincount(found.owner, minlength=n)
    for k in KS:
        hits = (found.captions < k).astype(np.int64)
        chance = float(np.mean([1 - _missed(m, int(c), k) for c in own]))
        yield Recall(f"recall@{k}, image to caption", hits, np.ones(n, np.int64), chance)
    for k in KS:
        hits = np.bincount(found.owner, weights=found.images < k, minlength=n).astype(np.int64)
        yield Recall(f"recall@{k}, caption to image", hits, own, min(k / n, 1.0))


def _missed(m: int, own: int, k: int) -> float:
    """That k of m captions, drawn at random, are none of an image's own."""
    return math.comb(m - own, k) / math.comb(m, k) if k <= m else 0.0
