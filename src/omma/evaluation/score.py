"""A score with everything that is needed to reproduce it."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from sklearn.metrics import balanced_accuracy_score

from omma.evaluation import confidence

Subject = Literal["trained", "untrained", "pixels"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of one protocol on one subject."""

    subject: Subject
    protocol: str  # "knn" | "linear" | "ridge" | "zeroshot" | "retrieval"
    metric: str = "top1"
    value: float  # share of test images classified correctly, 0 to 1
    interval95: tuple[float, float]  # bootstrap over the test images, not over training runs
    # None for protocols that do not classify:
    balanced_accuracy: float | None = None  # mean recall over the classes of the test part
    majority: float | None = None  # the score of always predicting the most frequent train label
    k: int | None = None  # neighbours, k-NN only
    T: float | None = None  # temperature of the vote, k-NN only
    layer: str = "last"
    pooling: str = "pooled"
    crop: str  # how an image became the input
    precision: str = "fp32"  # of the forward pass
    split: str  # where train and test part come from
    seed: int
    n_train: int | None = None
    n_test: int  # number of queries
    classes: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the probe chose on the train part

    def to_json(self) -> dict[str, Any]:
        """Plain types only, without the fields that don't apply."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return fields | {"interval95": list(self.interval95), "settings": dict(self.settings)}


def classification_fields(
    predictions: Int[np.ndarray, "m"],
    labels: Int[np.ndarray, "m"],
    train_labels: Int[np.ndarray, "n"],
    seed: int = 0,
) -> dict[str, Any]:
    """The fields of a Score that follow from predictions and labels."""
    correct = predictions == labels
    with warnings.catch_warnings():  # about predicted classes without test images, which do not count
        warnings.simplefilter("ignore", UserWarning)
        balanced = balanced_accuracy_score(labels, predictions)
    return {
        "value": float(correct.mean()),
        "interval95": confidence.bootstrap(correct, seed),
        "balanced_accuracy": float(balanced),
        "majority": float((labels == np.bincount(train_labels).argmax()).mean()),
        "n_train": len(train_labels),
        "n_test": len(labels),
        "classes": len(np.union1d(labels, train_labels)),
    }
