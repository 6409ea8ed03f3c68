"""Which labelled images a classifier learns from, and which it is judged on meanwhile."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from omma.core.words import count
from omma.data.sources import label_sets, split
from omma.data.sources.groups import Groups
from omma.data.sources.indexed import IndexedImages
from omma.pretraining.request import Supervision

FEWEST = 5  # images a class, as a mean, below which all are needed to learn from
MOST = 2_000  # images that are held out: they stay in memory, decoded
NAMED = 5  # classes in a note


def labels_of(images: IndexedImages, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n *k"]:
    """One label an image, or label sets."""
    labels = images.labels if images.label_sets is None else images.label_sets
    assert labels is not None, "guaranteed by Needs.labels"
    return labels[rows]


class Division(NamedTuple):
    """Rows, sorted, and what to know of them."""

    learned: Int[np.ndarray, "n"]
    held_out: Int[np.ndarray, "h"]  # none of very few
    notes: list[str]  # on the choice of images
    held_out_note: str


def divide(
    images: IndexedImages,
    rows: Int[np.ndarray, "n"],
    supervision: Supervision,
    seed: int,
    groups: Groups | None = None,
) -> Division:
    """Choose images to learn from and to judge by; rows: labelled ones.

    A class of one image keeps it to learn from. groups: whole ones are held out, and a class whose images all
    lie in one keeps it; MOST of their images are judged by.
    """
    rows, notes = _chosen(images, rows, supervision, seed)
    labels = labels_of(images, rows)
    codes = labels if labels.ndim == 1 else label_sets.strata(labels)
    _, sizes = np.unique(codes, return_counts=True)
    share, why = min(supervision.holdout, MOST / len(rows)), ""
    learned, held_out, apart = np.arange(len(rows)), np.arange(0), 0
    if share == 0:
        why = "as asked for"
    elif sizes.mean() < FEWEST:
        why = f"they are fewer than {FEWEST} a class"
    else:
        own = None if groups is None else groups.codes[rows]
        learned, held_out = split.stratified(codes, share, seed, own)
        apart = len(held_out)
        if apart > MOST and groups is not None:
            held_out = held_out[split.stratified(codes[held_out], MOST / apart, seed)[1]]
        alone = "a single one" if groups is None else f"all of its images in one group by {groups.name}"
        why = "" if len(held_out) else f"every class has {alone}"
    note = f"held out, to judge by: {count(len(held_out), 'labelled image')}, {share:.0%} of each class"
    if groups is not None and not why:
        by_image = split.stratified(codes, share, seed)
        leaking = groups.of_rows(rows).leaking(*by_image)
        images_out, part = count(apart, "labelled image"), apart / len(rows)
        whole = count(groups.of_rows(rows[np.setdiff1d(np.arange(len(rows)), learned)]).number, "whole group")
        whole += f" by {groups.name}" + f" ({len(held_out):,} are read)" * (len(held_out) < apart)
        note = (
            f"held out, to judge by: {images_out}, {part:.0%}, in {whole}; by image "
            f"{leaking:.0%} of them would have others of their {groups.name} in training"
        )
    if why:
        note = (
            f"no labelled image is held out ({why}): the last weights are the result, and nothing tells how "
            "good they are"
        )
    return Division(rows[learned], rows[held_out], [*notes, *_tiny(images, labels[learned])], note)


def _chosen(
    images: IndexedImages, rows: Int[np.ndarray, "n"], supervision: Supervision, seed: int
) -> tuple[np.ndarray, list[str]]:
    labels, among = labels_of(images, rows), f"of {len(rows):,} labelled images"
    if supervision.shots is not None:
        chosen = rows[split.shots(labels, supervision.shots, seed)]
        return chosen, [f"{len(chosen):,} {among}: {supervision.shots} of each class (seed {seed})"]
    if supervision.fraction is not None:
        chosen = rows[split.fraction(labels, supervision.fraction, seed)]
        return chosen, [f"{len(chosen):,} {among}: {supervision.fraction:.3g} of each class (seed {seed})"]
    return rows, []


def _tiny(images: IndexedImages, labels: Int[np.ndarray, "n *k"]) -> list[str]:
    """Classes with no image to learn from, or a single one."""
    if labels.ndim == 1:
        sizes = np.bincount(labels, minlength=len(images.classes))
    else:
        sizes = (labels > 0).sum(axis=0)
    notes = []
    for size, text in ((0, "no image to learn from"), (1, "a single image to learn from")):
        if len(names := [images.classes[k] for k in np.flatnonzero(sizes == size)]):
            more = f", and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
            notes.append(f"{text}: {', '.join(names[:NAMED])}{more}")
    return notes
