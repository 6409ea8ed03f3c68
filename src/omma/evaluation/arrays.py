"""Feature arrays of the user's own, whatever made them, judged by k-NN and a linear probe."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from omma.core import notebook
from omma.core.words import count
from omma.data.sources.split import stratified
from omma.evaluation import NAMES, confidence, knn, linear
from omma.evaluation.split import Split


@dataclass(frozen=True, kw_only=True)
class ArrayScore:
    """How many test rows one protocol classifies correctly."""

    protocol: Literal["knn", "linear"]
    value: float  # share of the test rows, 0 to 1
    interval95: tuple[float, float]  # bootstrap over the test rows, or over their groups
    majority: float  # what the best constant answer scores: the test part's largest class
    test: Int[np.ndarray, "m"] = field(repr=False)  # the rows that were tested
    predictions: Shaped[np.ndarray, "m"] = field(repr=False)  # of these rows, as the labels were given
    correct: Bool[np.ndarray, "m"] = field(repr=False)  # for `confidence.paired`, with other features

    def __repr__(self) -> str:
        low, high = (f"{100 * end:.1f}" for end in self.interval95)
        accuracy = f"{NAMES[self.protocol]} {self.value:.1%} ({low} to {high})"
        return notebook.brief(
            "ArrayScore",
            f"{accuracy}; largest class {self.majority:.1%}; {count(len(self.test), 'test row')}",
        )


def judge(
    features: Float[np.ndarray, "n d"],
    labels: Shaped[np.ndarray, "n"],
    *,
    test: Bool[np.ndarray, "n"] | None = None,
    groups: Shaped[np.ndarray, "n"] | None = None,
    seed: int = 0,
) -> tuple[ArrayScore, ArrayScore]:
    """The scores of k-NN (k = 20, or all train rows if there are fewer) and of a linear probe.

    Both learn from the train rows alone; the probe's penalty is chosen on held-out train rows. Compare other
    features of the same rows by `confidence.paired(a.correct, b.correct)`.

    Args:
        features: One row for each image.
        labels: The classes, as numbers from 0 on or as texts.
        test: Which rows are tested; without it a fifth of each class is.
        groups: What belongs together (a patient, a site). Without `test` no group is on both sides. Intervals
            draw whole groups; they are 0 to 1 if only one is tested.
        seed: Of the splits and the intervals.

    Raises ValueError for arrays that do not fit together, values that are not finite, missing labels, and
    fewer than two classes to learn.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    for name, each in {"labels": labels, "test": test, "groups": groups}.items():
        if each is not None and (features.ndim != 2 or np.shape(each) != features.shape[:1]):
            shapes = f"features {list(features.shape)} and {name} {list(np.shape(each))}"
            raise ValueError(f"{shapes}: give features [n, d] and {name} [n]")
    if labels.dtype.kind in "if" and not (labels >= 0).all():
        raise ValueError(f"{count(int((~(labels >= 0)).sum()), 'row')} with no label; leave them out")
    classes, codes = np.unique(labels, return_inverse=True)
    members = None if groups is None else np.unique(groups, return_inverse=True)[1]
    if test is None:
        train_rows, test_rows = stratified(codes, seed=seed, groups=members)
    else:
        train_rows, test_rows = np.flatnonzero(~np.asarray(test, bool)), np.flatnonzero(test)
    data = Split(features[train_rows], codes[train_rows], features[test_rows], codes[test_rows])
    if members is not None:
        data = data._replace(train_groups=members[train_rows], test_groups=members[test_rows])
    voted = next(iter(knn.predict_each(data, [knn.HEADLINE]).values()))
    probed = linear.predict(data, seed).predictions
    majority = float(np.bincount(data.test_labels).max() / len(test_rows))

    def score(protocol: Literal["knn", "linear"], predictions: Int[np.ndarray, "m"]) -> ArrayScore:
        correct = predictions == data.test_labels
        return ArrayScore(
            protocol=protocol,
            value=float(correct.mean()),
            interval95=confidence.bootstrap(correct, seed, groups=data.test_groups),
            majority=majority,
            test=test_rows,
            predictions=classes[predictions],
            correct=correct,
        )

    return score("knn", voted), score("linear", probed)
