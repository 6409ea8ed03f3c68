"""Classifiers of fixed vectors on a curve: those of frozen features, and with raw pixels its floors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.adaptation import floors, head_fit
from omma.evaluation import knn, linear
from omma.weights.classifier import Classifier

SOFTMAX = head_fit.Config(classifier="softmax")
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
        return linear.fit(x, targets, settings, loss=loss)(test).argmax(1)

    return probe


def _linear(x: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    return linear_head(x, labels, classes, seed).logits(torch.from_numpy(test)).argmax(1).numpy()


def linear_head(
    x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], classes: tuple[str, ...], seed: int
) -> Classifier:
    """That of `omma finetune --adapt head`, but never class means, which stand beside it."""
    return head_fit.fit_features(x, labels, classes, config=SOFTMAX, seed=seed).classifier


FEATURES: dict[str, Probe] = {
    "prototypes": _prototypes,
    "knn": _knn,
    "hinge": _fixed("hinge", floors.HINGE),
    "linear": _linear,
}
PIXELS = FEATURES | {"linear": _fixed("softmax", floors.SOFTMAX)}  # nothing of a floor is chosen
