"""Classifiers of fixed vectors on a curve: those of frozen features, and with raw pixels its floors."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from omma.evaluation import knn, linear, prototypes

PENALTY = 1e-2  # of linear classifiers where no class has two images, so that none can be held out

Probe = Callable[
    [Float[np.ndarray, "n d"], Int[np.ndarray, "n"], Float[np.ndarray, "m d"], int], Int[np.ndarray, "m"]
]


def _knn(x: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return knn.predict(x, labels, test)


def _prototypes(x: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return prototypes.predict(x, labels, test)


def _by_gradient(loss: linear.Loss) -> Probe:
    """A linear classifier; its penalty is chosen by five-fold hold-out among the labelled images."""

    def probe(x: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        targets = linear.one_hot(labels, int(labels.max()) + 1)
        settings: linear.Settings = {"solver": "lbfgs", "penalty": PENALTY}
        if np.bincount(labels).max() > 1:
            settings = linear.choose(x, targets, loss=loss, seed=seed, solver="lbfgs")
        return linear.fit(x, targets, settings, loss=loss)(test).argmax(1)

    return probe


PROBES: dict[str, Probe] = {
    "prototypes": _prototypes,
    "knn": _knn,
    "hinge": _by_gradient("hinge"),
    "linear": _by_gradient("softmax"),
}
