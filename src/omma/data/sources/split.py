"""Split labelled images into a train and a test part, or choose a few of each class."""

import numpy as np
from jaxtyping import Int

from omma.core.protocols import Images, Key
from omma.core.random import Stream, bits, occurrence
from omma.core.words import count
from omma.data.sources import group_split, label_sets
from omma.data.sources.groups import Groups
from omma.data.sources.labels import remedy

NAMED = 3  # classes in a message


def stratified(
    labels: Int[np.ndarray, "n"],
    test_share: float = 0.2,
    seed: int = 0,
    groups: Int[np.ndarray, "n"] | None = None,
) -> tuple[Int[np.ndarray, "a"], Int[np.ndarray, "b"]]:
    """Sorted indices of a train and a test part; each class of two images or more is in both.

    round(test_share * size) images of a class are in the test part, but at least one in each part; a class of
    one image is in the train part. Unlabelled images (-1) are in neither. The choice within a class depends
    on the seed and on that class alone.
    groups: no group is in both parts. The shares are then as near as whole groups allow
    (`group_split.held_out`), and a class whose images all lie in one group is in the train part alone.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}: must lie between 0 and 1")
    labels = np.asarray(labels)
    if groups is not None:
        rows = np.flatnonzero(labels >= 0)
        rng = np.random.default_rng((seed, 0x6409))
        held_out = group_split.held_out(labels[rows], groups[rows], test_share, rng)
        return rows[~held_out], rows[held_out]
    train, test = [], []
    for label in np.unique(labels[labels >= 0]).tolist():
        members = np.random.default_rng((seed, label)).permutation(np.flatnonzero(labels == label))
        n_test = min(max(round(test_share * len(members)), 1), len(members) - 1)
        test.append(members[:n_test])
        train.append(members[n_test:])
    none = [np.empty(0, np.int64)]
    return np.sort(np.concatenate(train or none)), np.sort(np.concatenate(test or none))


def shots(labels: Int[np.ndarray, "n *k"], k: int, seed: int) -> Int[np.ndarray, "m"]:
    """Sorted indices of k images of each class; all of a class that has fewer.

    The choice is nested: those for k + 1 contain those for k. Whether an image comes before another of its
    class depends on the seed and on their two indices alone. labels: one an image (-1: none), or label sets
    [n, k]: then each class has at least k of its images. Raises ValueError if k < 1.
    """
    if k < 1:
        raise ValueError(f"shots={k}: must be at least 1")
    order = _drawn(len(labels), seed)
    if labels.ndim == 2:
        columns = [order[labels[order, column] > 0][:k] for column in range(labels.shape[1])]
        return np.unique(np.concatenate(columns))
    codes = labels[order]
    return np.sort(order[(codes >= 0) & (occurrence(codes) < k)])


def fraction(labels: Int[np.ndarray, "n *k"], share: float, seed: int) -> Int[np.ndarray, "m"]:
    """Sorted indices of a share of each class's images, rounded, but at least one.

    Nested and drawn as `shots` does. Label sets are drawn by `label_sets.strata`. Raises ValueError unless
    0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"fraction={share}: must be above 0 and at most 1")
    order = _drawn(len(labels), seed)
    codes = (labels if labels.ndim == 1 else label_sets.strata(labels))[order]
    counts = np.bincount(codes[codes >= 0])
    most = np.clip(np.round(counts * share), 1, None)
    return np.sort(order[(codes >= 0) & (occurrence(codes) < most[codes.clip(0)])])


def _drawn(n: int, seed: int) -> Int[np.ndarray, "n"]:
    """The images in a random order, in which two stand as they do in that of any larger n."""
    words = bits(Key(seed, np.zeros(n, np.int64), np.arange(n)), Stream.SHOTS, 2).astype(np.uint64)
    return np.argsort((words[:, 0] << np.uint64(32)) | words[:, 1], kind="stable")


def split_name(images: Images) -> str:
    """What the split of a collection is, in words."""
    return getattr(images, "split_name", "") or "the collection's own split"


def train_test(
    images: Images, seed: int = 0, test_share: float = 0.2, groups: Groups | None = None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Indices of labelled images to train and to test on, and a description of the split.

    The collection's own split is used if both of its parts have labels; otherwise a stratified one is made,
    of images with several labels by `label_sets.strata`.
    groups: a split that is made puts none of them on both sides. If they were asked for, the collection's own
    split is used only where that is true of it, or where the user named its parts.
    Raises ValueError, with the remedy, if there are too few labels, or too few groups.
    """
    source = getattr(images, "source", "") or "images"
    sets = label_sets.of(images)
    labels = images.labels if sets is None else label_sets.strata(sets)
    if labels is None or not (labels >= 0).any():
        raise ValueError(f"{source}: no labels; {remedy(images)}")
    labelled = labels >= 0
    codes = np.unique(labels[labelled])
    if len(codes) < 2 and sets is None:
        only = images.classes[int(codes[0])] if images.classes else int(codes[0])
        raise ValueError(f"{source}: only one class ({only}); {remedy(images)}, with at least two classes")
    named = getattr(images, "split_name", "")
    if images.splits is not None:
        train, test = (np.flatnonzero(labelled & (images.splits == side)) for side in ("train", "test"))
        if len(train) and len(test) and (sets is not None or len(np.unique(labels[train])) > 1):
            asked = groups is not None and groups.asked and not named
            if not (asked and groups is not None and len(groups.on_both_sides(train, test))):
                return train, test, f"{split_name(images)}: {len(train):,} train, {len(test):,} test"
        elif named:
            raise ValueError(
                f"{source}, {split_name(images)}: {len(train):,} labelled images of "
                f"{len(np.unique(labels[train]))} classes to train on, {len(test):,} to test on; name parts "
                "that have labels, the first of two classes at least"
            )
    train, test = stratified(labels, test_share, seed, None if groups is None else groups.codes)
    if not len(test):
        raise ValueError(_nothing_to_test(source, images, labels, groups))
    if groups is None:
        kind, sides = "stratified split", ""
        share = test_share
    else:
        kind, share = f"split by {groups.name}", len(test) / (len(train) + len(test))
        one, other = (len(np.unique(groups.codes[part])) for part in (train, test))
        sides = f", of {one:,} and {other:,} groups"
    description = f"{kind}, {share:.0%} test, seed {seed}: {len(train):,} train, {len(test):,} test{sides}"
    return train, test, description


def _nothing_to_test(source: str, images: Images, labels: Int[np.ndarray, "n"], groups: Groups | None) -> str:
    """Why every class is in the train part alone."""
    if groups is None:
        return f"{source}: with one image per class none is left to test on; label at least two of each"
    rows = np.flatnonzero(labels >= 0)
    several = label_sets.of(images) is not None or not images.classes
    alone = group_split.single(labels[rows], groups.codes[rows])
    names = [str(k) if several else images.classes[k] for k in alone.tolist()]
    which = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
    held = count(groups.of_rows(rows).number, "group")
    return (
        f"{source}: no split by {groups.name} is possible ({held} with labels; classes that lie in one: "
        f"{which or 'none'}); label more groups of each class, or split by image with --group none"
    )
