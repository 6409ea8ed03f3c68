"""Alignment of one domain's features with another's in closed form, without the other's labels.

CORAL [Sun, Feng, Saenko 2016, arXiv 1511.05547, algorithm 1] whitens the source's features and re-colours
them with the target's covariance. Both are standardised before, each by its own mean and deviations:

    X_S' = X_S C_S^(-1/2) C_T^(1/2),   C = cov(X) + penalty I

A probe is then trained on X_S' with the source's labels, and reads X_T. Standardising alone is the same with
diagonal covariances.

Classes may move in different directions, which no covariance tells. "clusters" divides the target's images by
spherical k-means that starts from the source's class means [as the pseudo-labels of Liang, Hu, Feng 2020,
arXiv 2002.08546, section 3.2], and moves each class of the source onto its cluster.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from omma.evaluation.split import standardise

ROUNDS = 50  # of k-means, at most
PENALTY = 1.0  # the paper's: as much as the variance of a standardised feature

Aligned = tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]  # the source's train images, test images


class Covariance(NamedTuple):
    """directions diag(variances) directions^T + penalty I, of rank r without the penalty."""

    directions: Float[np.ndarray, "d r"]
    variances: Float[np.ndarray, "r"]
    penalty: float

    @classmethod
    def of(cls, x: Float[np.ndarray, "n d"], penalty: float = PENALTY) -> "Covariance":
        """That of some images' features; in fp64. Raises ValueError for fewer than two images."""
        if len(x) < 2:
            raise ValueError(f"a covariance needs the features of two images or more, and there is {len(x)}")
        x = x - x.mean(0, dtype=np.float64)
        # the smaller of both Gram matrices: images are often fewer than dimensions
        wide = len(x) < x.shape[1]
        power, vectors = scipy.linalg.eigh(x @ x.T if wide else x.T @ x)
        alive = power > max(power[-1], 0) * 1e-12
        power, vectors = power[alive], vectors[:, alive]
        return cls((x.T @ vectors) / np.sqrt(power) if wide else vectors, power / (len(x) - 1), penalty)

    def power(self, x: Float[np.ndarray, "n d"], exponent: float) -> Float[np.ndarray, "n d"]:
        """x C^exponent; without a penalty, directions that have no variance become 0."""
        rest = self.penalty**exponent if self.penalty > 0 else 0.0
        inside = (self.variances + self.penalty) ** exponent - rest
        return rest * x + ((x @ self.directions) * inside) @ self.directions.T


def recoloured(
    x: Float[np.ndarray, "n d"], source: Covariance, target: Covariance
) -> Float[np.ndarray, "n d"]:
    """x C_S^(-1/2) C_T^(1/2) [algorithm 1]: centred features of the source with the target's covariance."""
    return target.power(source.power(x, -0.5), 0.5)


def class_means(
    x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], classes: int
) -> Float[np.ndarray, "c d"]:
    """The mean of each class, NaN for one without images; fp64."""
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    sums = np.stack([x[labels == k].sum(0, dtype=np.float64) for k in range(classes)])
    return sums / np.where(counts == 0, np.nan, counts)[:, None]


def clustered(
    x: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "c d"], rounds: int = ROUNDS
) -> Int[np.ndarray, "n"]:
    """Spherical k-means: the cluster of each image, by cosine, from the given centres until none changes.

    A centre that is NaN, or loses all images, stays as it is; ties go to the first.
    """
    unit, centres = _unit(x), _unit(centres)
    own = np.full(len(x), -1)
    for _ in range(rounds):
        nearest = np.nan_to_num(unit @ centres.T, nan=-np.inf).argmax(1)
        if (nearest == own).all():
            break
        own = nearest
        found = class_means(unit, own, len(centres))
        centres = np.where(np.isnan(found), centres, _unit(found))
    return own


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


# ---------------------------------------------------------------- ways to align
def standardised(
    source: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    target: Float[np.ndarray, "k d"],
    test: Float[np.ndarray, "m d"],
) -> Aligned:
    """Each dimension with mean 0 and deviation 1 within each of the domains; target: not tested images."""
    return standardise(source)[0], standardise(target, test)[1]


def coral(
    source: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    target: Float[np.ndarray, "k d"],
    test: Float[np.ndarray, "m d"],
) -> Aligned:
    """The source's covariance as well, as above."""
    train, test = standardised(source, labels, target, test)
    (other,) = standardise(target)
    changed = recoloured(train, Covariance.of(train), Covariance.of(other))
    return changed.astype(np.float32), test


def clusters(
    source: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    target: Float[np.ndarray, "k d"],
    test: Float[np.ndarray, "m d"],
) -> Aligned:
    """After CORAL, the mean of each class as well: that of the target's cluster which starts from it."""
    train, test = coral(source, labels, target, test)
    (other,) = standardise(target)
    classes = int(labels.max()) + 1
    means = class_means(train, labels, classes)
    # from the mean directions, as the clusters are made of directions
    found = class_means(other, clustered(other, class_means(_unit(train), labels, classes)), classes)
    moves = np.nan_to_num(found - means)  # a class without a cluster stays
    return (train + moves[labels]).astype(np.float32), test


NAMES: dict[str, Callable[..., Aligned]] = {
    "standardise": standardised,
    "coral": coral,
    "clusters": clusters,
}
