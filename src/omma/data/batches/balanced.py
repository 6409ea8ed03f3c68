"""An epoch's order in which each class is drawn equally often: a pure function of seed and epoch.

For training on classes of very different sizes [Kang 2019, arXiv 1910.09217, class-balanced sampling]. Within
a class, images come in turn: each is drawn once more before any is drawn twice more, across epochs too.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64

from omma.core.random import derive, epoch_order

_CLASS = 0xBA  # separates the order within a class from that of an epoch


def members(labels: Int[np.ndarray, "n *k"]) -> list[Int64[np.ndarray, "m"]]:
    """The images of each class that has any.

    labels: one an image (-1: none), or label sets [n, k]: an image counts for each of its classes, and those
    of none are a class. Raises ValueError without a labelled image.
    """
    if labels.ndim == 1:
        groups = [np.flatnonzero(labels == code) for code in np.unique(labels[labels >= 0])]
    else:
        groups = [np.flatnonzero(column > 0) for column in labels.T]
        groups.append(np.flatnonzero((labels <= 0).all(axis=1) & (labels == 0).any(axis=1)))
    groups = [group for group in groups if len(group)]
    if not groups:
        raise ValueError("no image has a label, so there are no classes to balance")
    return groups


def balanced_order(
    seed: int, epoch: int, groups: Sequence[Int[np.ndarray, "m"]], n: int
) -> Int64[np.ndarray, "n"]:
    """The n images of an epoch; over all epochs so far, classes differ by at most one draw."""
    classes = len(groups)
    chosen = []
    for c, group in enumerate(groups):
        # draw t of all epochs is of class t mod classes
        first, last = (max(0, -(-(t - c) // classes)) for t in (epoch * n, (epoch + 1) * n))
        turn, position = np.divmod(np.arange(first, last), len(group))
        for t in np.unique(turn).tolist():
            order = epoch_order(derive(seed, _CLASS, c), t, len(group))
            chosen.append(group[order[position[turn == t]]])
    drawn = np.concatenate(chosen)
    return drawn[epoch_order(seed, epoch, n)]
