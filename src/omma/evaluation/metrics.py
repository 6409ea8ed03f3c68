"""Flat metrics of a classifier's answers, each with a bootstrap interval over the test images.

Values are scikit-learn's where it has the metric. Intervals draw images with replacement (`resamples`): what
a draw changes are sums over images, so all metrics but average precision follow from one sparse product.

Macro figures average the classes that the test part has or that were answered, as scikit-learn does by
default; balanced accuracy and mean average precision average those that the test part has.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn import metrics as sk

from omma.evaluation import confidence
from omma.evaluation.average_precision import average_precisions

BINS = 15  # of the calibration error
TOP = 5
NAMES = {  # in the order of tables
    "top1": "top-1",
    "top5": "top-5",
    "exact_match": "exact match",
    "balanced_accuracy": "balanced accuracy",
    "precision_micro": "precision, micro",
    "precision_macro": "precision, macro",
    "recall_micro": "recall, micro",
    "recall_macro": "recall, macro",
    "f1_micro": "F1, micro",
    "f1_macro": "F1, macro",
    "map_micro": "AP, micro",
    "map_macro": "mAP",
    "ece": f"calibration error, {BINS} bins",
    "nll": "negative log-likelihood",
    "brier": "Brier score",
}


GROUPS = {  # what `--metrics` adds to top-1
    "accuracy": ("balanced_accuracy", "top5"),
    "f1": tuple(name for name in NAMES if name.startswith(("precision", "recall", "f1"))),
    "ap": ("map_micro", "map_macro"),
    "calibration": ("ece", "nll", "brier"),
}


class Figure(NamedTuple):
    """A metric's value with its 95 % interval."""

    value: float
    interval95: tuple[float, float]


class ByClass(NamedTuple):
    """A metric of each class with its 95 % intervals; NaN where it is not defined."""

    value: Float[np.ndarray, "c"]
    interval95: Float[np.ndarray, "c 2"]


class Metrics(NamedTuple):
    """Metrics of one set of answers."""

    overall: dict[str, Figure]  # by the keys of NAMES
    by_class: dict[str, ByClass]  # "precision", "recall", "f1" and, with scores, "ap"
    support: Int[np.ndarray, "c"]  # test images of each class
    predicted: Int[np.ndarray, "c"]  # answers of each class
    draws: dict[str, Float[np.ndarray, "r"]]  # of mAP, the same images for all answers to them


# ---------------------------------------------------------------- one label an image
def single_label(
    predictions: Int[np.ndarray, "m"],
    labels: Int[np.ndarray, "m"],
    classes: int,
    scores: Float[np.ndarray, "m c"] | None = None,
    probabilities: bool = False,
    ranked: bool = True,
    seed: int = 0,
    groups: Int[np.ndarray, "m"] | None = None,
) -> Metrics:
    """Metrics of answers to images of one label each.

    scores: of every class, larger is likelier, for top-5 (more than five classes) and average precision; ties
    count against the model. probabilities: the scores are such, which adds calibration error, negative
    log-likelihood and Brier score. ranked: measure average precision, which takes longest. groups: of the
    images; intervals draw whole ones. Raises ValueError without images.
    """
    m = len(labels)
    if m == 0:
        raise ValueError("no test images: metrics need at least one")
    correct = predictions == labels
    sums = {
        "support": _one_hot(labels, classes),
        "predicted": _one_hot(predictions, classes),
        "hits": _one_hot(labels, classes, correct),
    }
    values = {"top1": float(correct.mean())}
    exact = {"top1": confidence.bootstrap(correct, seed, groups=groups)}
    if scores is not None and classes > TOP:
        within = rank(scores, labels) < TOP
        values["top5"] = float(within.mean())
        exact["top5"] = confidence.bootstrap(within, seed, groups=groups)
    if scores is not None and probabilities:
        top = scores.max(1).astype(np.float64)
        bins = bin_of(top)
        sums |= {
            "bins_confidence": _one_hot(bins, BINS, top),
            "bins_correct": _one_hot(bins, BINS, correct),
            "nll": sparse.csr_array(nll(scores, labels)[None]),
            "brier": sparse.csr_array(brier(scores, labels)[None]),
        }
    whole = {name: x.sum(1) for name, x in sums.items()}
    values |= _scikit(predictions, labels) | {k: float(v) for k, v in _of_sums(whole).items() if k in LOSSES}
    draws, class_draws = _drawn(sums, m, seed, groups)
    alike = _independent(labels[:, None] == np.arange(classes), groups)
    by_class = _by_class(_counted(labels, predictions, None, np.arange(classes)), class_draws, whole, alike)
    if scores is not None and ranked:
        positive = labels[:, None] == np.arange(classes)
        aps = average_precisions(scores, positive, np.ones_like(positive), seed, groups)
        values |= aps.overall
        draws |= aps.draws
        by_class["ap"] = ByClass(aps.by_class, aps.intervals)
    every, smallest = _number(groups, m), int(alike[alike > 0].min())
    overall = {
        k: Figure(v, exact[k] if k in exact else _interval(k, v, draws[k], smallest if k in MEANS else every))
        for k, v in values.items()
    }
    overall = {k: overall[k] for k in NAMES if k in overall}
    return Metrics(overall, by_class, whole["support"].astype(int), whole["predicted"].astype(int), {})


def rank(scores: Float[np.ndarray, "m c"], labels: Int[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
    """How many other classes score at least as high as the right one; 0 is a hit at rank 1."""
    own = np.take_along_axis(scores, labels[:, None], 1)
    return (scores >= own).sum(1) - 1


def calibration_error(confidences: Float[np.ndarray, "m"], correct: Bool[np.ndarray, "m"]) -> float:
    """Expected calibration error [Guo 2017, arXiv 1706.04599, eq. 3] in BINS bins of equal width.

    A bin holds its upper edge, and the first one 0 as well: a confidence of exactly 1 is in the last bin.
    """
    confidences = np.asarray(confidences, np.float64)
    bins = bin_of(confidences)
    gaps = np.bincount(bins, confidences, BINS) - np.bincount(bins, correct, BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def bin_of(confidences: Float[np.ndarray, "m"], bins: int = BINS) -> Int[np.ndarray, "m"]:
    """The bin of each confidence in [0, 1]: ((i / bins, (i + 1) / bins], with 0 in the first."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidences, side="left")


def nll(probabilities: Float[np.ndarray, "m c"], labels: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    """-log of the right class's probability, which is taken as fp32's smallest step from 1 if it is less."""
    own = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0].astype(np.float64)
    return -np.log(np.maximum(own, np.finfo(np.float32).eps))


def brier(probabilities: Float[np.ndarray, "m c"], labels: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    """Squared distance of the probabilities from the one-hot label, 0 to 2 [Brier 1950]."""
    own = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0].astype(np.float64)
    return np.square(probabilities, dtype=np.float64).sum(1) - 2 * own + 1


# ---------------------------------------------------------------- several labels an image
def multi_label(
    scores: Float[np.ndarray, "m c"],
    targets: Int[np.ndarray, "m c"],
    thresholds: Float[np.ndarray, "c"] | float = 0.5,
    seed: int = 0,
    groups: Int[np.ndarray, "m"] | None = None,
) -> Metrics:
    """Metrics of answers to images of several labels each.

    targets: 1 has the label, 0 has it not, -1 is not known, which counts nowhere. thresholds: a class is
    answered where its score is at least that. Average precision needs no threshold; a class that no image has
    is left out of its mean. groups: as of `single_label`. Raises ValueError without images or known targets.
    """
    known = targets >= 0
    if not known.any():
        raise ValueError("no known label in the test part: metrics need at least one")
    m = len(targets)
    answered, has = (scores >= thresholds) & known, targets > 0
    sums = {
        "support": sparse.csr_array(has.T.astype(np.float64)),
        "predicted": sparse.csr_array(answered.T.astype(np.float64)),
        "hits": sparse.csr_array((has & answered).T.astype(np.float64)),
    }
    whole = {name: x.sum(1) for name, x in sums.items()}
    draws, class_draws = _drawn(sums, m, seed, groups)
    alike = _independent(has, groups)
    present = np.flatnonzero(whole["support"] + whole["predicted"])
    values = {}
    pair = has.astype(int), answered.astype(int)
    for average in AVERAGES:
        values |= {f"{name}_{average}": float(x) for name, x in _counted(*pair, average, present).items()}
    by_class = _by_class(_counted(*pair, None), class_draws, whole, alike)
    aps = average_precisions(scores, has, known, seed, groups)
    by_class["ap"] = ByClass(aps.by_class, aps.intervals)
    right = ((answered == has) | ~known).all(1)
    interval = confidence.bootstrap(right, seed, groups=groups)
    overall = {"exact_match": Figure(float(right.mean()), interval)}
    every = _number(groups, m)
    smallest = int(alike[alike > 0].min(initial=every))
    for name, value in (values | aps.overall).items():
        n = smallest if name in MEANS else every
        overall[name] = Figure(value, _interval(name, value, (draws | aps.draws)[name], n))
    overall = {k: overall[k] for k in NAMES if k in overall}
    counts = whole["support"].astype(int), whole["predicted"].astype(int)
    return Metrics(overall, by_class, *counts, aps.draws)


# ---------------------------------------------------------------- sums over images, and their draws
AVERAGES = ("micro", "macro")
COUNTED = ("precision", "recall", "f1")
LOSSES = ("ece", "nll", "brier")
RAISED = ("ece", "map_macro", "map_micro")  # that resampling raises, since it repeats images
MEANS = ("balanced_accuracy", "precision_macro", "recall_macro", "f1_macro", "map_macro")  # over classes


def _one_hot(
    groups: Int[np.ndarray, "m"], n: int, values: np.ndarray | None = None
) -> Float[sparse.csr_array, "n m"]:
    """A row a group, which holds its images' values, 1 by default."""
    m = len(groups)
    values = np.ones(m) if values is None else values.astype(np.float64)
    return sparse.csr_array((values, (groups, np.arange(m))), shape=(n, m))


def _number(groups: Int[np.ndarray, "m"] | None, m: int) -> int:
    """Independent draws: groups, or images without them."""
    return m if groups is None else len(np.unique(groups))


def _independent(has: Bool[np.ndarray, "m c"], groups: Int[np.ndarray, "m"] | None) -> Int[np.ndarray, "c"]:
    """The number of images of each class, or of groups that have one."""
    if groups is None:
        return has.sum(0)
    rows, columns = np.nonzero(has)
    pairs = np.unique(np.stack([columns, groups[rows]]), axis=1)
    return np.bincount(pairs[0], minlength=has.shape[1])


def _drawn(
    sums: Mapping[str, sparse.csr_array], m: int, seed: int, groups: Int[np.ndarray, "m"] | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draws [r] of the overall figures, and draws [c, r] of those by class."""
    names, stacked = list(sums), sparse.vstack(list(sums.values()), format="csr")
    ends = np.cumsum([len(x.indptr) - 1 for x in sums.values()])
    totals = np.concatenate(
        [stacked @ weights for weights in confidence.resamples(m, seed, groups=groups)], 1
    )
    parts = dict(zip(names, np.split(totals, ends[:-1]), strict=True))
    return _of_sums(parts), _class_figures(parts)


def _class_figures(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each class; 0 / 0 counts as 0."""
    hits, support, predicted = sums["hits"], sums["support"], sums["predicted"]
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + predicted, 1),
    }


def _of_sums(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The overall figures; a last axis of draws stays."""
    hits, support, predicted = sums["hits"], sums["support"], sums["predicted"]
    m = support.sum(0)
    each, tested = _class_figures(sums), support > 0
    present = (tested | (predicted > 0)).sum(0)
    found = {f"{name}_macro": x.sum(0) / np.maximum(present, 1) for name, x in each.items()}
    found["balanced_accuracy"] = each["recall"].sum(0) / np.maximum(tested.sum(0), 1)
    found["precision_micro"] = hits.sum(0) / np.maximum(predicted.sum(0), 1)
    found["recall_micro"] = hits.sum(0) / np.maximum(m, 1)
    found["f1_micro"] = 2 * hits.sum(0) / np.maximum(m + predicted.sum(0), 1)
    if "nll" in sums:
        found["ece"] = np.abs(sums["bins_confidence"] - sums["bins_correct"]).sum(0) / m
        found |= {name: sums[name].sum(0) / m for name in ("nll", "brier")}
    return found


def _scikit(predictions: Int[np.ndarray, "m"], labels: Int[np.ndarray, "m"]) -> dict[str, float]:
    values = {
        f"{name}_{a}": float(x) for a in AVERAGES for name, x in _counted(labels, predictions, a).items()
    }
    # of the classes tested alone: sk.balanced_accuracy_score is this, but warns where others were answered
    balanced = _counted(labels, predictions, "macro", np.unique(labels))["recall"]
    return values | {"balanced_accuracy": float(balanced)}


def _counted(
    labels: np.ndarray, predictions: np.ndarray, average: str | None, classes: np.ndarray | None = None
) -> dict[str, Any]:
    """scikit-learn's precision, recall and F1; 0 / 0 counts as 0."""
    function: Any = sk.precision_recall_fscore_support
    return dict(zip(COUNTED, function(labels, predictions, labels=classes, average=average, zero_division=0)))


def _by_class(
    values: Mapping[str, np.ndarray],
    draws: Mapping[str, np.ndarray],
    whole: Mapping[str, np.ndarray],
    alike: Int[np.ndarray, "c"],
) -> dict[str, ByClass]:
    """NaN for classes that the test part does not have and nobody answered; alike: `_independent`."""
    present = whole["support"] + whole["predicted"] > 0
    found = {}
    for name, value in values.items():
        ends = confidence.opened(confidence.percentiles(draws[name]), value, alike)
        absent = ~present
        value, ends[absent] = np.where(absent, np.nan, value), np.nan
        found[name] = ByClass(value, ends)
    return found


def _interval(name: str, value: float, draws: Float[np.ndarray, "r"], n: int) -> tuple[float, float]:
    ends = confidence.percentiles(draws[None], np.array([value]) if name in RAISED else None)
    ends = ends.clip(0, 1) if name in RAISED else ends
    ((low, high),) = confidence.opened(ends, np.array([value]), np.array([n]))
    return float(low), float(high)
