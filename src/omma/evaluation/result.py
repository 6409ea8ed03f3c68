"""A score with everything that is needed to reproduce it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from omma.evaluation import confidence

Subject = Literal["trained", "untrained", "pixels"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number of one protocol on one subject."""

    subject: Subject
    protocol: str  # "knn" | "linear" | "ridge" | "zeroshot" | "retrieval"
    metric: str = "top1"
    value: float  # share of test images answered rightly, 0 to 1
    interval95: tuple[float, float]  # bootstrap over the test images; the training's own chance is not in it
    # None where nothing is classified:
    balanced_accuracy: float | None = None  # mean over the test part's classes of the share answered rightly
    majority: float | None = None  # what always answering the commonest train label would score
    k: int | None = None  # neighbours, k-NN only
    T: float | None = None  # temperature of the vote, k-NN only
    layer: str = "last"
    pooling: str = "pooled"
    crop: str  # how an image became the input
    precision: str = "fp32"  # of the forward pass
    split: str  # where the two parts come from
    seed: int
    n_train: int | None = None
    n_test: int  # what was asked
    classes: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the probe chose on the train part

    def to_json(self) -> dict[str, Any]:
        """Plain types only, fields that don't apply left out."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return found | {"interval95": list(self.interval95), "settings": dict(self.settings)}


def scores(
    predictions: Int[np.ndarray, "m"],
    labels: Int[np.ndarray, "m"],
    train_labels: Int[np.ndarray, "n"],
    seed: int = 0,
) -> dict[str, Any]:
    """The fields of a Result that follow from answers and labels."""
    correct = predictions == labels
    present, index = np.unique(labels, return_inverse=True)
    recalls = np.bincount(index, weights=correct) / np.bincount(index)
    return {
        "value": float(correct.mean()),
        "interval95": confidence.bootstrap(correct, seed),
        "balanced_accuracy": float(recalls.mean()),
        "majority": float((labels == np.bincount(train_labels).argmax()).mean()),
        "n_train": len(train_labels),
        "n_test": len(labels),
        "classes": len(np.union1d(present, train_labels)),
    }
