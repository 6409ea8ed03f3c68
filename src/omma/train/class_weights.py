"""Weights of a loss that make up for classes of different sizes."""

import numpy as np
from jaxtyping import Float32, Int


def class_weights(labels: Int[np.ndarray, "n"], classes: int) -> Float32[np.ndarray, "k"]:
    """A weight for each class, inversely proportional to its images and scaled to a mean of 1.

    The mean is over the classes that have images; others have weight 1. Labels of -1 do not count.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes).astype(np.float64)
    present = counts > 0
    weights = np.ones(classes)
    weights[present] = 1 / counts[present]
    weights[present] /= weights[present].mean() if present.any() else 1
    return weights.astype(np.float32)


def positive_weights(label_sets: Int[np.ndarray, "n k"]) -> Float32[np.ndarray, "k"]:
    """For each class, its negatives by its positives: `pos_weight` of a binary cross-entropy.

    1 for a class without either; entries of -1 (not known) do not count.
    """
    positives, negatives = ((label_sets == value).sum(axis=0).astype(np.float64) for value in (1, 0))
    both = (positives > 0) & (negatives > 0)
    return np.where(both, negatives / np.where(both, positives, 1), 1).astype(np.float32)
