"""Alignment of one domain's features with another's in closed form, without the other's labels.

CORAL [Sun, Feng, Saenko 2016, arXiv 1511.05547, algorithm 1] whitens the source's features and re-colours
them with the target's covariance. Both are standardised before, each by its own mean and deviations:

    X_S' = X_S C_S^(-1/2) C_T^(1/2),   C = cov(X) + penalty I

A probe is then trained on X_S' with the source's labels, and reads X_T. Standardising alone is the same with
diagonal covariances.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from omma.evaluation.split import standardise

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


def coral(
    source: Float[np.ndarray, "n d"], target: Float[np.ndarray, "k d"], test: Float[np.ndarray, "m d"]
) -> Aligned:
    """Source images as the target's are, and the target's test images; target: those that are not tested."""
    train, test = standardised(source, target, test)
    (other,) = standardise(target)
    changed = recoloured(train, Covariance.of(train), Covariance.of(other))
    return changed.astype(np.float32), test


def standardised(
    source: Float[np.ndarray, "n d"], target: Float[np.ndarray, "k d"], test: Float[np.ndarray, "m d"]
) -> Aligned:
    """Each dimension with mean 0 and deviation 1 within each of the domains; target: not tested images."""
    return standardise(source)[0], standardise(target, test)[1]


NAMES: dict[str, Callable[..., Aligned]] = {"coral": coral, "standardise": standardised}
