"""The input of every evaluator: features and labels of a train and a test part, checked and split further."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from omma.core.words import count
from omma.data.sources import group_split
from omma.data.sources.split import occurrence, stratified

Pairs = Sequence[tuple[Int[np.ndarray, "f"], Int[np.ndarray, "h"]]]  # rows to fit on, rows held out
FEW = 1_000  # train images below which one hold-out is too noisy, and five are averaged


class Split(NamedTuple):
    """Features and labels of both parts; evaluators fit on train and only predict test."""

    train: Float[np.ndarray, "n d"]
    train_labels: Int[np.ndarray, "n"]
    test: Float[np.ndarray, "m d"]
    test_labels: Int[np.ndarray, "m"]
    train_groups: Int[np.ndarray, "n"] | None = None  # none of them is held out in part
    test_groups: Int[np.ndarray, "m"] | None = None  # what intervals draw

    @property
    def classes(self) -> int:
        """One more than the largest label, classes without train images included."""
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1


def checked(data: Split) -> Split:
    """The data in float32 and int64; ValueError if no evaluator can use them."""
    train, train_labels, test, test_labels, *groups = data
    for name, features, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if features.ndim != 2 or len(features) != len(labels):
            raise ValueError(f"{name}: features {features.shape} do not match {len(labels)} labels")
        if len(labels) == 0:
            raise ValueError(f"no labelled images in the {name} part; label more, or name another split")
        if labels.min() < 0:
            raise ValueError(
                f"{name}: {count(int((labels < 0).sum()), 'image')} with no label; leave them out"
            )
        if bad := int((~np.isfinite(features).all(axis=1)).sum()):
            raise ValueError(
                f"{name}: features of {bad} of {count(len(features), 'image')} are not finite; "
                "try precision fp32, or an earlier checkpoint"
            )
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train features have {train.shape[1]} dimensions, test features {test.shape[1]}")
    if len(np.unique(train_labels)) < 2:
        raise ValueError("all train images have the same label; give at least two classes")
    return Split(
        np.ascontiguousarray(train, np.float32),
        train_labels.astype(np.int64),
        np.ascontiguousarray(test, np.float32),
        test_labels.astype(np.int64),
        *groups,
    )


def holdouts(
    labels: Int[np.ndarray, "n"],
    seed: int,
    share: float = 0.2,
    groups: Int[np.ndarray, "n"] | None = None,
) -> list[tuple[Int[np.ndarray, "f"], Int[np.ndarray, "h"]]]:
    """(fit, held_out) indices into the train part, stratified and seeded: one pair, or five below FEW images.

    A class with a single image stays in fit; all others have at least one image on either side.
    groups: none is on both sides (`stratified`), and there are five pairs below FEW groups. Raises ValueError
    if nothing can be held out.
    """
    if groups is not None:
        number = 5 if len(np.unique(groups)) < FEW else 1
        pairs = [stratified(labels, share, seed * 5 + k, groups) for k in range(number)]
        if not all(len(held_out) for _, held_out in pairs):
            raise ValueError(
                "no class has train images in two groups, so no group can be held out to choose a probe's "
                "strength; label more groups, or use k-NN alone"
            )
        return pairs
    counts = np.bincount(labels)
    if counts.max() < 2:
        raise ValueError(
            "no class has two train images, so nothing can be held out to choose a probe's strength; "
            "label more images, or use k-NN alone"
        )
    held_out_counts = np.where(counts < 2, 0, np.clip(np.round(counts * share), 1, None)).astype(np.int64)
    rng = np.random.default_rng((seed, 0x401D))
    pairs = []
    for _ in range(5 if len(labels) < FEW else 1):
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]  # grouped by class, shuffled within
        rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
        held_out = rank < held_out_counts[labels[order]]
        pairs.append((np.sort(order[~held_out]), np.sort(order[held_out])))
    return pairs


def folds(
    labels: Int[np.ndarray, "n"],
    seed: int,
    number: int = 5,
    groups: Int[np.ndarray, "n"] | None = None,
) -> list[tuple[Int[np.ndarray, "f"], Int[np.ndarray, "h"]]]:
    """(fit, held_out) indices for cross-validation, stratified and seeded: each image is held out once.

    The single image of a class is never held out. Fewer folds where no class has `number` images; none where
    no class has two.
    groups: none is on both sides (`group_split.folds`); one that holds all images of a class is never held
    out.
    """
    rng = np.random.default_rng((seed, 0xF01D))
    if groups is None:
        order = rng.permutation(len(labels))
        rank = np.empty(len(labels), np.int64)
        rank[order] = occurrence(labels[order])  # among the images of its class
        sizes = np.bincount(labels)
        part = (rank + rng.integers(number, size=len(sizes))[labels]) % number
        part[sizes[labels] < 2] = -1
    else:
        part = group_split.folds(labels, groups, number, rng)
    held_out = [np.flatnonzero(part == each) for each in range(number)]
    return [(np.setdiff1d(np.arange(len(labels)), rows), rows) for rows in held_out if len(rows)]


def scaling(
    fit: Float[np.ndarray, "n d"], common: bool = False
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    """Mean and 1 / deviation of each dimension, in fp32; 0 instead of the latter for constant ones.

    common: the root mean square of the deviations in place of each.
    """
    mean, std = fit.mean(axis=0, dtype=np.float64), fit.std(axis=0, dtype=np.float64)
    constant = std <= 1e-6 * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)
    if common and not constant.all():
        std = np.where(constant, 0.0, np.sqrt((std**2).mean()))
    scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, std)).astype(np.float32)
    return mean.astype(np.float32), scale


def standardise(
    fit: Float[np.ndarray, "n d"], *others: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, "n d"], ...]:
    """Each dimension scaled to mean 0 and deviation 1 by the statistics of `fit`; constant ones become 0."""
    mean, scale = scaling(fit)
    return tuple((x - mean) * scale for x in (fit, *others))


class Answer(NamedTuple):
    """A probe's answers for the test part and the settings that it chose on the train part."""

    predictions: Int[np.ndarray, "m"]
    settings: dict[str, float | int | str]
    # of every class, larger is likelier; a class without train image has the least
    scores: Float[np.ndarray, "m c"]
    probabilities: bool = False  # whether the scores are the probe's probabilities, which sum to 1
