"""A score with everything that is needed to reproduce it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from omma.evaluation import confidence

# metrics that may exceed 1
NO_SHARES = ("nll", "brier", "lca_height", "crm_lca_height", "tree_error", "r2", "circular_r2", "mae")
UNEVEN = 2.0  # times the smallest class that the largest one has, from where both accuracies are shown
Subject = Literal["trained", "untrained", "pixels"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of one protocol on one subject."""

    subject: Subject
    protocol: str  # one of evaluation.PROTOCOLS
    metric: str = "top1"  # or "balanced_accuracy", "recall@1, ...", a key of metrics.NAMES or hierarchy.NAMES
    value: float  # top1: share of test images classified correctly, 0 to 1
    # bootstrap over the test images (or their groups: `group`), not over training runs
    interval95: tuple[float, float]
    # None for protocols that do not classify:
    balanced_accuracy: float | None = None  # mean recall over the classes of the test part
    majority: float | None = None  # what the best constant answer scores: the test part's largest class
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
    group: str | None = None  # the column whose groups intervals draw ...
    test_groups: int | None = None  # ... and how many of them the test part has
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the probe chose on the train part

    def to_json(self) -> dict[str, Any]:
        """Plain types only, without the fields that don't apply."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return fields | {"interval95": list(self.interval95), "settings": dict(self.settings)}


def is_share(metric: str) -> bool:
    """Whether a metric lies in [0, 1] and is written in per cent."""
    return not metric.startswith(NO_SHARES)


def classification_fields(
    predictions: Int[np.ndarray, "m"],
    labels: Int[np.ndarray, "m"],
    train_labels: Int[np.ndarray, "n"],
    seed: int = 0,
    groups: Int[np.ndarray, "m"] | None = None,
) -> list[dict[str, Any]]:
    """The fields of the Scores that follow from predictions and labels: top-1, and balanced accuracy where
    the classes of the test part are uneven. groups: of the test images, whole ones of which are drawn."""
    correct = predictions == labels
    _, members, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    hits = np.bincount(members[correct], minlength=len(sizes))
    balanced = float((hits / sizes).mean())
    counts = {
        "n_train": len(train_labels),
        "n_test": len(labels),
        "classes": len(np.union1d(labels, train_labels)),
    }
    top1 = {
        "value": float(correct.mean()),
        "interval95": confidence.bootstrap(correct, seed, groups=groups),
        "balanced_accuracy": balanced,
        "majority": float(sizes.max() / len(labels)),
    }
    scores = [top1 | counts]
    if sizes.max() >= UNEVEN * sizes.min():
        if groups is None:
            interval = confidence.balanced(hits, sizes, seed)
        else:
            interval = confidence.balanced_by_group(correct, labels, groups, seed)
        each = {"value": balanced, "interval95": interval}
        scores.append(each | {"metric": "balanced_accuracy", "majority": 1 / len(sizes)} | counts)
    return scores
