"""Parts of labelled images that no group straddles, which keep the classes' shares as well as possible."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

Members = list[tuple[list[int], list[int]]]  # of each group: its classes, and its images of each


class Counted(NamedTuple):
    """Images by group and class."""

    groups: Int[np.ndarray, "n"]  # 0, 1, ... without gaps
    members: Members
    sizes: Int[np.ndarray, "c"]  # images of each class

    @property
    def scarce(self) -> Bool[np.ndarray, "c"]:
        """Classes whose images all lie in one group."""
        holders = np.zeros(len(self.sizes), np.int64)
        for classes, _ in self.members:
            holders[classes] += 1
        return holders == 1


def counted(labels: Int[np.ndarray, "n"], groups: Int[np.ndarray, "n"]) -> Counted:
    """Count the images of each class in each group; labels: at least 0, none missing."""
    _, codes = np.unique(groups, return_inverse=True)
    pairs, numbers = np.unique(np.stack([codes.reshape(-1), labels]), axis=1, return_counts=True)
    starts = np.searchsorted(pairs[0], np.arange(codes.max(initial=-1) + 2))
    classes, numbers = pairs[1].tolist(), numbers.tolist()
    members = [(classes[a:b], numbers[a:b]) for a, b in pairwise(starts.tolist())]
    return Counted(codes.reshape(-1), members, np.bincount(labels))


def held_out(
    labels: Int[np.ndarray, "n"], groups: Int[np.ndarray, "n"], share: float, rng: np.random.Generator
) -> Bool[np.ndarray, "n"]:
    """Which images to hold out: whole groups, so that about `share` of each class is held out.

    Groups are drawn in random order, and each is held out if that brings the classes' shares nearer to
    `share` (least squares) and leaves every class an image. Then each class without a held-out image gets
    the group that fits best, where one can be spared. So a class whose images all lie in one group has none.
    """
    table = counted(labels, groups)
    order = rng.permutation(len(table.members)).tolist()
    sizes = table.sizes.astype(np.float64)
    weight = (1 / np.maximum(sizes, 1) ** 2).tolist()
    over = (-share * sizes).tolist()  # images held out beyond the share
    left = table.sizes.tolist()
    chosen = np.zeros(len(table.members), bool)

    def cost(group: int) -> float:
        """By how much the deviation grows; infinite if a class would be left without an image."""
        total = 0.0
        for label, n in zip(*table.members[group]):
            if left[label] <= n:
                return np.inf
            total += weight[label] * n * (n + 2 * over[label])
        return total

    def take(group: int) -> None:
        chosen[group] = True
        for label, n in zip(*table.members[group]):
            over[label] += n
            left[label] -= n

    for group in order:
        if cost(group) < 0:
            take(group)
    missing = {label for label, n in enumerate(left) if 0 < n == table.sizes[label]}
    for label in sorted(missing):
        if left[label] == table.sizes[label]:
            having = [g for g in order if label in table.members[g][0]]
            best = min(having, key=cost)
            if np.isfinite(cost(best)):
                take(best)
    return chosen[table.groups]


def folds(
    labels: Int[np.ndarray, "n"], groups: Int[np.ndarray, "n"], number: int, rng: np.random.Generator
) -> Int[np.ndarray, "n"]:
    """The fold of each image, of `number` that no group straddles; -1: never held out.

    From large to small, in random order among equals, each group joins the fold that has the fewest of its
    classes' images. A group is never held out if all images of a class lie in it.
    """
    table = counted(labels, groups)
    scarce = table.scarce
    order = rng.permutation(len(table.members))
    totals = np.array([sum(numbers) for _, numbers in table.members])
    order = order[np.argsort(-totals[order], kind="stable")]
    weight = 1 / np.maximum(table.sizes, 1)
    held = np.zeros((number, len(table.sizes)))  # images of each class in each fold
    fold = np.full(len(table.members), -1, np.int64)
    for group in order.tolist():
        classes, numbers = table.members[group]
        if scarce[classes].any():
            continue
        load = (held[:, classes] * (np.array(numbers) * weight[classes])).sum(1)
        fold[group] = _least(load, held.sum(1))
        held[fold[group], classes] += numbers
    return fold[table.groups]


def single(labels: Int[np.ndarray, "n"], groups: Int[np.ndarray, "n"]) -> Int[np.ndarray, "k"]:
    """The classes whose images all lie in one group."""
    return np.flatnonzero(counted(labels, groups).scarce)


def _least(load: Float[np.ndarray, "f"], total: Float[np.ndarray, "f"]) -> int:
    """The fold of the least load, among equals of the fewest images."""
    return int(np.lexsort((total, load))[0])
