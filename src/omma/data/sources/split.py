"""Split labelled images into a train and a test part."""

import numpy as np

from omma.core.protocols import Images
from omma.data.sources.labels import remedy


def stratified(labels: np.ndarray, test_share: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of a train and a test part; each class of two images or more is in both.

    round(test_share * size) images of a class are in the test part, but at least one in each part; a class of
    one image is in the train part. Unlabelled images (-1) are in neither. The choice within a class depends
    on the seed and on that class alone.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}: must lie between 0 and 1")
    labels = np.asarray(labels)
    train, test = [], []
    for label in np.unique(labels[labels >= 0]).tolist():
        members = np.random.default_rng((seed, label)).permutation(np.flatnonzero(labels == label))
        n_test = min(max(round(test_share * len(members)), 1), len(members) - 1)
        test.append(members[:n_test])
        train.append(members[n_test:])
    none = [np.empty(0, np.int64)]
    return np.sort(np.concatenate(train or none)), np.sort(np.concatenate(test or none))


def split_name(images: Images) -> str:
    """What the split of a collection is, in words."""
    return getattr(images, "split_name", "") or "the collection's own split"


def train_test(images: Images, seed: int = 0, test_share: float = 0.2) -> tuple[np.ndarray, np.ndarray, str]:
    """Indices of labelled images to train and to test on, and a description of the split.

    The collection's own split is used if both of its parts have labels; otherwise a stratified one is made.
    Raises ValueError, with the remedy, if there are too few labels.
    """
    source = getattr(images, "source", "") or "images"
    labels = images.labels
    if labels is None or not (labels >= 0).any():
        raise ValueError(f"{source}: no labels; {remedy(images)}")
    labelled = labels >= 0
    codes = np.unique(labels[labelled])
    if len(codes) < 2:
        only = images.classes[int(codes[0])] if images.classes else int(codes[0])
        raise ValueError(f"{source}: only one class ({only}); {remedy(images)}, with at least two classes")
    if images.splits is not None:
        train, test = (np.flatnonzero(labelled & (images.splits == side)) for side in ("train", "test"))
        if len(train) and len(test) and len(np.unique(labels[train])) > 1:
            return train, test, f"{split_name(images)}: {len(train):,} train, {len(test):,} test"
        if getattr(images, "split_name", ""):
            raise ValueError(
                f"{source}, {split_name(images)}: {len(train):,} labelled images of "
                f"{len(np.unique(labels[train]))} classes to train on, {len(test):,} to test on; name parts "
                "that have labels, the first of two classes at least"
            )
    train, test = stratified(labels, test_share, seed)
    if not len(test):
        raise ValueError(
            f"{source}: with one image per class none is left to test on; label at least two of each"
        )
    description = (
        f"stratified split, {test_share:.0%} test, seed {seed}: {len(train):,} train, {len(test):,} test"
    )
    return train, test, description
