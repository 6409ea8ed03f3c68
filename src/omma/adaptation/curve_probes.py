"""Classifiers of fixed vectors on a curve: those of frozen features, and with raw pixels its floors."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from omma.adaptation import floors, head
from omma.evaluation import knn, linear
from omma.evaluation.split import FEW, folds, holdouts

Probe = Callable[
    [Float[np.ndarray, "n d"], Int[np.ndarray, "n"], Float[np.ndarray, "m d"], int], Int[np.ndarray, "m"]
]
""" (vectors, labels, vectors of the test images, seed) -> predicted labels """


def _prototypes(x: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return floors.class_means(x, labels, test)


def _knn(x: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return knn.predict(x, labels, test)


def _fixed(loss: linear.Loss, settings: dict[str, Any]) -> Probe:
    def probe(x: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        targets = linear.one_hot(labels, int(labels.max()) + 1)
        return linear.refit(x, targets, settings, loss=loss)(test).argmax(1)

    return probe


def _linear(x: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return fitted_head(x, labels, int(labels.max()) + 1, seed)(test).argmax(1)


def fitted_head(
    x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], classes: int, seed: int
) -> linear.Linear:
    """The classifier of `head.fit_features`, not calibrated, which changes no answer."""
    targets = linear.one_hot(labels, classes)
    if not (parts := folds(labels, seed)):
        return linear.refit(x, targets, {"solver": "lbfgs", "penalty": head.LONE})
    return linear.fit(x, targets, pairs=parts if len(x) < FEW else holdouts(labels, seed), seed=seed).linear


FEATURES: dict[str, Probe] = {
    "prototypes": _prototypes,
    "knn": _knn,
    "hinge": _fixed("hinge", floors.HINGE),
    "linear": _linear,
}
PIXELS = FEATURES | {"linear": _fixed("softmax", floors.SOFTMAX)}  # nothing of a floor is chosen
