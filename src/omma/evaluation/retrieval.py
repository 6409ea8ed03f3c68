"""Retrieval between images and captions: recall@k in both directions [Radford 2021, arXiv 2103.00020]."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

KS = (1, 5, 10)
BLOCK = 1024  # queries whose similarities are in memory at a time


class Ranks(NamedTuple):
    """How many wrong answers are at least as near as the nearest right one; 0 is a hit at rank 1.

    Ties count against the model, so that one which maps all images to the same vector scores 0.
    """

    captions: Int[np.ndarray, "n"]  # for each image, of the captions
    images: Int[np.ndarray, "m"]  # for each caption, of the images
    owner: Int[np.ndarray, "m"]  # the image that each caption belongs to


class Recall(NamedTuple):
    """One recall with the data for its interval, a row an image: its hits and its queries."""

    metric: str
    hits: Int[np.ndarray, "n"]  # each image's queries with a right answer among the k nearest
    queries: Int[np.ndarray, "n"]
    chance: float  # the expected recall of random vectors

    @property
    def value(self) -> float:
        return float(self.hits.sum() / self.queries.sum())


def ranks(
    images: Float[np.ndarray, "n o"], captions: Float[np.ndarray, "m o"], owner: Int[np.ndarray, "m"]
) -> Ranks:
    """Ranks for unit vectors; caption j belongs to image owner[j], and every image has at least one."""
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


def recalls(ranks: Ranks) -> Iterator[Recall]:
    """recall@1, 5 and 10 of captions for images and of images for captions."""
    n, m = len(ranks.captions), len(ranks.images)
    own = np.bincount(ranks.owner, minlength=n)
    for k in KS:
        hits = (ranks.captions < k).astype(np.int64)
        chance = float(np.mean([1 - missed(m, int(c), k) for c in own]))
        yield Recall(f"recall@{k}, image to caption", hits, np.ones(n, np.int64), chance)
    for k in KS:
        hits = np.bincount(ranks.owner, weights=ranks.images < k, minlength=n).astype(np.int64)
        yield Recall(f"recall@{k}, caption to image", hits, own, min(k / n, 1.0))


def missed(m: int, own: int, k: int) -> float:
    """The probability that k of m captions, drawn at random, include none of an image's own."""
    return math.comb(m - own, k) / math.comb(m, k) if k <= m else 0.0
