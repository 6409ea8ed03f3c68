"""Mislabelled images by confident learning (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068).

A linear probe of a model's features gives each image the probabilities of all classes without having seen
the image or a copy of it. In-sample probabilities are of no use: a probe learns wrong labels by heart. Where
a class has too few images to be held out in folds, neighbours' labels decide.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from omma.core.words import count
from omma.data.sources import label_sets as sets_of_labels
from omma.evaluation import linear
from omma.evaluation.split import FEW, folds
from omma.ops.nearest import nearest, unit

FOLDS = 5
NEIGHBOURS = 10
AGREE = 0.9  # share of the vote of neighbours that must fall on one other label

Pairs = list[tuple[Int[np.ndarray, "f"], Int[np.ndarray, "h"]]]  # rows to fit, rows held out


class Labels(NamedTuple):
    """One judgement a row: of an image, or with several labels an image of an image and a class."""

    rows: Int[np.ndarray, "m"]  # of the vectors
    classes: Int[np.ndarray, "m"]  # given; with several labels an image, the class in question
    suggested: Int[np.ndarray, "m"]  # the likeliest class; with several labels: 1 it applies, 0 it does not
    confidence: Float[np.ndarray, "m"]  # probability of what is given
    probability: Float[np.ndarray, "m"]  # of what is suggested
    flagged: Bool[np.ndarray, "m"]
    by_neighbours: Bool[np.ndarray, "m"]  # judged by them, not by the probe; shares of votes
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- confident learning
def confident_class(
    probabilities: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "n"]:
    """The class that each image is counted under in the confident joint; -1 where there is none.

    Of the classes j whose probability reaches t_j, the mean probability of j among images labelled j, the
    likeliest [Northcutt 2021, eq. 1 and 2]. A class without images has no threshold and none is counted
    under it.
    """
    k = probabilities.shape[1]
    sizes = np.bincount(labels, minlength=k)
    own = probabilities[np.arange(len(labels)), labels]
    means = np.bincount(labels, own, minlength=k) / np.maximum(sizes, 1)
    reached = (probabilities >= np.where(sizes > 0, means, np.inf) - 1e-9) & (sizes > 0)
    return np.where(reached.any(1), np.where(reached, probabilities, -1.0).argmax(1), -1)


def issues(probabilities: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Which labels are issues: as many as the confident joint has off its diagonal, the least probable first.

    probabilities: out of sample. The joint says how many labels are wrong, the probability of the given label
    which [Northcutt 2021, section 3.2]; a label that is the likeliest class is none of them. On 50 bird
    species with a tenth of the labels flipped, this list has a precision of .98 where the entries off the
    diagonal themselves have .80 (benchmarks/mislabelled.py).
    """
    counted, rows = confident_class(probabilities, labels), np.arange(len(labels))
    unlikely = probabilities.argmax(1) != labels
    number = int(((counted >= 0) & (counted != labels) & unlikely).sum())
    doubted = np.zeros(len(labels), bool)
    ranked = np.where(unlikely, probabilities[rows, labels], np.inf)
    doubted[np.argsort(ranked, kind="stable")[:number]] = True
    return doubted


# ---------------------------------------------------------------- out of fold
def grouped_folds(
    labels: Int[np.ndarray, "n"], groups: Int[np.ndarray, "n"], seed: int, number: int = FOLDS
) -> Pairs:
    """(fit, held_out) rows of folds that no group straddles, stratified by labels of groups' first images."""
    _, first, again = np.unique(groups, return_index=True, return_inverse=True)
    return [
        (np.flatnonzero(np.isin(again, fit)), np.flatnonzero(np.isin(again, held_out)))
        for fit, held_out in folds(labels[first], seed, number)
    ]


def out_of_fold(
    x: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    pairs: Pairs,
    loss: linear.Loss = "softmax",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "n k"]:
    """Probabilities by probes that were fitted without the image's fold; NaN where an image is in none.

    The strength of the probe is chosen by the accuracy on the folds held out (on the first alone from FEW
    images on), one number for all of them.
    """
    options: dict[str, Any] = {"loss": loss, "seed": seed, "device": device}
    settings = linear.choose(x, targets, pairs=pairs if len(x) < FEW else pairs[:1], **options)
    found = np.full(targets.shape, np.nan, np.float32)
    for fit, held_out in pairs:
        logits = torch.from_numpy(linear.fit(x[fit], targets[fit], settings, **options)(x[held_out]))
        found[held_out] = (logits.sigmoid() if loss == "sigmoid" else logits.softmax(-1)).numpy()
    return found


# ---------------------------------------------------------------- one label an image
def find(
    vectors: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Labels:
    """Judge the label of every labelled image; labels: -1 where there is none.

    groups: images of one number are copies of each other, which never stand on both sides of a fold. Classes
    with fewer groups than FOLDS are judged by the labels of neighbours (`by_neighbours`). Raises ValueError
    unless two classes have images.
    """
    rows = np.flatnonzero(labels >= 0)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    names, codes = np.unique(labels[rows], return_inverse=True)
    if len(names) < 2:
        raise ValueError("all labelled images have one label: label errors need at least two classes")
    x, own = np.ascontiguousarray(vectors[rows], np.float32), groups[rows]
    distinct = np.unique(np.stack([codes, own]), axis=1)[0]
    rare = np.bincount(distinct, minlength=len(names)) < FOLDS
    probabilities = np.full((len(rows), len(names)), np.nan, np.float32)
    if (~rare).sum() > 1:
        pairs = grouped_folds(codes, own, seed)
        probabilities = out_of_fold(x, linear.one_hot(codes, len(names)), pairs, seed=seed, device=device)
    by_neighbours = rare[codes] | np.isnan(probabilities).any(1)
    flagged = np.zeros(len(rows), bool)
    probed = np.flatnonzero(~by_neighbours)
    flagged[probed] = issues(probabilities[probed], codes[probed])
    asked = np.flatnonzero(by_neighbours)
    if len(asked):
        probabilities[asked] = neighbours_vote(x, codes, own, asked, len(names))
        likeliest = probabilities[asked].argmax(1)
        flagged[asked] = (likeliest != codes[asked]) & (probabilities[asked].max(1) >= AGREE)
    at, likeliest = np.arange(len(rows)), probabilities.argmax(1)
    return Labels(
        rows, names[codes], names[likeliest], probabilities[at, codes], probabilities[at, likeliest], flagged,
        by_neighbours, _notes(rare, len(asked)),
    )  # fmt: skip


def neighbours_vote(
    vectors: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    rows: Int[np.ndarray, "m"],
    classes: int,
    k: int = NEIGHBOURS,
) -> Float[np.ndarray, "m c"]:
    """The share of its k nearest neighbours, one of each other group, that bears each label."""
    _, first = np.unique(groups, return_index=True)
    base = unit(vectors[first])
    near = nearest(unit(vectors[rows]), base, k + 1)
    at = first[near.indices]
    other = groups[at] != groups[rows][:, None]
    other &= np.cumsum(other, 1) <= k
    shares = np.zeros((len(rows), classes), np.float32)
    line = np.broadcast_to(np.arange(len(rows))[:, None], at.shape)
    np.add.at(shares, (line[other], labels[at[other]]), 1.0)
    return shares / np.maximum(shares.sum(1, keepdims=True), 1)


def _notes(rare: Bool[np.ndarray, "k"], asked: int) -> tuple[str, ...]:
    if not asked:
        return ()
    classes = count(int(rare.sum()), "class has", "classes have")
    return (
        f"{classes} fewer than {FOLDS} different images: their labels are judged by those of "
        f"{NEIGHBOURS} neighbours ({count(asked, 'image')})",
    )


# ---------------------------------------------------------------- several labels an image
def find_sets(
    vectors: Float[np.ndarray, "n d"],
    sets: Int[np.ndarray, "n k"],
    groups: Int[np.ndarray, "n"] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Labels:
    """Judge for each class whether it applies to each image; sets: 1 it does, 0 it does not, -1 not known.

    Confident learning of each class by itself, between "applies" and "does not", on out-of-fold probabilities
    of one sigmoid a class. Classes with fewer than FOLDS groups on either side are left out.
    """
    rows = np.flatnonzero(~sets_of_labels.unlabelled(sets))
    groups = np.arange(len(sets)) if groups is None else np.asarray(groups)
    x, given, own = np.ascontiguousarray(vectors[rows], np.float32), sets[rows], groups[rows]
    judged = [
        k for k, column in enumerate(given.T)
        if min(len(np.unique(own[column == side])) for side in (0, 1)) >= FOLDS
    ]  # fmt: skip
    parts, left = list[tuple[np.ndarray, ...]](), sets.shape[1] - len(judged)
    if judged:
        pairs = grouped_folds(sets_of_labels.strata(given), own, seed)
        targets = linear.one_hot(given, sets.shape[1])
        applies = out_of_fold(x, targets, pairs, "sigmoid", seed, device).astype(np.float64)
        for k in judged:
            known = np.flatnonzero((given[:, k] >= 0) & ~np.isnan(applies[:, k]))
            both = np.stack([1 - applies[known, k], applies[known, k]], 1)
            label = given[known, k].astype(np.int64)
            line = np.arange(len(known))
            parts.append(
                (
                    rows[known],
                    np.full(len(known), k),
                    both.argmax(1),
                    both[line, label],
                    both.max(1),
                    issues(both, label),
                )
            )
    none = [np.zeros(0, np.int64)] * 3 + [np.zeros(0)] * 2 + [np.zeros(0, bool)]
    rows, classes, suggested, confidence, probability, flagged = (
        np.concatenate(column) for column in zip(*parts, none, strict=True)
    )
    less = f"not judged: {count(left, 'class', 'classes')} with fewer than {FOLDS} different images on a side"
    return Labels(
        rows, classes, suggested, confidence, probability, flagged, np.zeros(len(rows), bool),
        (less,) * bool(left),
    )  # fmt: skip
