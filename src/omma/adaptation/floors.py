"""Classical classifiers on the same features, which anything that trains longer has to beat."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from omma.data.sources import label_sets
from omma.evaluation import confidence, knn, linear, metrics
from omma.evaluation.split import folds

HINGE = {"solver": "lbfgs", "penalty": 1e-2}  # fixed: a floor is not tuned
SOFTMAX = {"solver": "lbfgs", "penalty": 1e-2}

Answering = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # x, labels, queries -> answers


def floors(
    x: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n *k"],
    seed: int = 0,
    softmax: bool = False,
    groups: Int[np.ndarray, "n"] | None = None,
) -> list[dict[str, Any]]:
    """Accuracy of each in cross-validation on the folds of `folds`, with its interval.

    With several labels an image, the mean average precision. softmax: include that classifier, too. groups:
    of the images; folds and intervals take whole ones.
    """
    several = labels.ndim == 2
    parts = folds(label_sets.strata(labels) if several else labels, seed, groups=groups)
    classes = labels.shape[1] if several else int(labels.max()) + 1
    kinds = _several(softmax) if several else _single(classes, softmax)
    return [
        {"name": name, **_judged(answer, x, labels, parts, seed, groups)} for name, answer in kinds.items()
    ]


def _single(classes: int, softmax: bool) -> dict[str, Answering]:
    kinds: dict[str, Answering] = {
        "nearest class mean": class_means,
        f"{knn.HEADLINE}-NN": lambda x, y, q: knn.predict(x, y, q),
        "hinge": partial(_linear, loss="hinge", settings=HINGE, classes=classes),
    }
    if softmax:
        kinds["softmax"] = partial(_linear, loss="softmax", settings=SOFTMAX, classes=classes)
    return kinds


def _several(softmax: bool) -> dict[str, Answering]:
    kinds: dict[str, Answering] = {f"{knn.HEADLINE}-NN": _neighbours}
    if softmax:
        kinds["sigmoid"] = partial(_linear, loss="sigmoid", settings=SOFTMAX, classes=0)
    return kinds


def _judged(
    answer: Answering,
    x: np.ndarray,
    labels: np.ndarray,
    parts: Any,
    seed: int,
    groups: np.ndarray | None,
) -> dict[str, Any]:
    rows = np.concatenate([held_out for _, held_out in parts])
    within = None if groups is None else confidence.several(groups[rows])
    answers = np.concatenate([answer(x[f], labels[f], x[h]) for f, h in parts])
    if labels.ndim == 1:
        correct = answers == labels[rows]
        value, interval = float(correct.mean()), confidence.bootstrap(correct, seed, groups=within)
        return {"metric": "top1", "value": value, "interval95": list(interval)}
    found = metrics.multi_label(answers, labels[rows], 0.0, seed, within).overall["map_macro"]
    return {"metric": "map_macro", "value": found.value, "interval95": list(found.interval95)}


def class_means(x: np.ndarray, y: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The class whose mean of unit vectors is nearest by cosine."""
    return linear.class_means(x, linear.one_hot(y, int(y.max()) + 1))(queries).argmax(1)


def _neighbours(x: np.ndarray, y: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Each class's share of the vote."""
    return knn.shares_of_sets(x, y, queries)[1]


def _linear(
    x: np.ndarray, y: np.ndarray, queries: np.ndarray, *, loss: linear.Loss, settings: Any, classes: int
) -> np.ndarray:
    logits = linear.fit(x, linear.one_hot(y, classes), settings, loss=loss)(queries)
    return logits if loss == "sigmoid" else logits.argmax(1)
