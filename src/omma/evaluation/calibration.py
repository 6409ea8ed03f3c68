"""How sure a classifier is, chosen on held-out images: temperature, thresholds, and when not to answer."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize_scalar
from scipy.stats import beta
from sklearn.metrics import precision_recall_curve

from omma.core.words import count
from omma.weights.classifier import Classifier, HeldOut

COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are searched
ERROR = 0.05  # share of wrong answers that is allowed if none is named
SURE = 0.95  # with which the error of answers is at most that stated
STEPS = 20  # shares of the held-out images that may be answered


def temperature(
    logits: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"], multi_label: bool = False
) -> float:
    """T that minimises the negative log-likelihood of softmax(logits / T) [Guo 2017, arXiv 1706.04599].

    targets: 1 for the classes that an image has, 0 for others, -1 (several labels an image: sigmoid) for what
    is not known. T is in [COLDEST, HOTTEST]; below 1 it sharpens. As in [Platt 1999], one more image counts
    whose class could be any: else a few held-out images, all answered rightly, would make every answer
    certain.
    """
    n, k = logits.shape
    z, y = torch.from_numpy(logits).double(), torch.from_numpy(targets).double()
    smoothed = (n * y + (0.5 if multi_label else 1 / k)) / (n + 1)
    known = (y >= 0).double()

    def nll(log_t: float) -> float:
        scaled = z / np.exp(log_t)
        if multi_label:
            losses = torch.nn.functional.softplus(scaled) - smoothed * scaled
            return float((losses * known).sum() / known.sum().clamp(min=1))
        return float(-(smoothed * scaled.log_softmax(1)).sum(1).mean())

    bounds = (float(np.log(COLDEST)), float(np.log(HOTTEST)))
    found = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


def thresholds(
    probabilities: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"]
) -> tuple[float, ...]:
    """For each class the probability from which it is answered: that with the largest F1.

    It lies midway between the probabilities of two images. .5 for a class that no image has, or all have.
    targets: -1 for what is not known.
    """
    chosen = []
    for p, y in zip(probabilities.T.astype(np.float64), targets.T):
        p, y = p[y >= 0], y[y >= 0]
        if not (y > 0).any() or (y > 0).all():
            chosen.append(0.5)
            continue
        precision, recall, values = precision_recall_curve(y, p)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(np.argmax(f1[:-1]))
        lower = values[best - 1] if best else 0.0
        chosen.append(float((values[best] + lower) / 2))
    return tuple(chosen)


class Abstention(NamedTuple):
    """When not to answer, so that few of the answers are wrong."""

    threshold: float  # of the first class's probability: below it there is no answer
    answered: float  # share of the held-out images that are answered
    wrong: float  # share of these answers that is wrong
    bound: float  # that share in all such images, at most (95 % sure)
    images: int  # held out


def abstention(
    confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"], error: float
) -> Abstention | None:
    """The lowest threshold whose answers are wrong at most at this rate; None if no threshold can keep it.

    confidence: the first class's probability of held-out images; correct: whether it is right. The promise is
    on images like these: with probability SURE over the choice of the held-out images, the true error of the
    answers is at most `error`. Every candidate's upper bound is that of Clopper and Pearson; candidates are
    tested from the surest images on, in steps fixed beforehand, up to the first that fails, so that testing
    many costs no certainty (fixed-sequence testing [Angelopoulos 2021, arXiv 2110.01052]).
    """
    if not 0 < error < 1:
        raise ValueError(f"error={error}: must lie between 0 and 1, such as .05")
    n, order = len(confidence), np.argsort(-confidence, kind="stable")
    ranked, wrong = confidence[order], np.cumsum(~correct[order])
    kept = None
    for answered in _candidates(n, error):
        last = int(np.searchsorted(-ranked, -ranked[answered - 1], side="right"))  # ties are answered alike
        bound = _upper(int(wrong[last - 1]), last)
        if bound > error:
            break
        rate = float(wrong[last - 1] / last)
        kept = Abstention(float(ranked[last - 1]), last / n, rate, bound, n)
    return kept


def _candidates(n: int, error: float) -> Sequence[int]:
    """Numbers of images to answer. The first allows two mistakes if there are many images, else none."""
    two, none = _fewest(2, error), _fewest(0, error)
    start = two if 2 * two <= n else none
    return sorted({*range(start, n, max(1, n // STEPS)), n}) if start <= n else []


@functools.cache
def _fewest(wrong: int, error: float) -> int:
    """Answers that suffice to prove the error, if so many of them are wrong."""
    return next(m for m in itertools.count(wrong + 1) if _upper(wrong, m) <= error)


def _upper(wrong: int, answered: int) -> float:
    """The one-sided upper bound of Clopper and Pearson for a rate."""
    return 1.0 if wrong >= answered else float(beta.ppf(SURE, wrong + 1, answered - wrong))


class Limit(NamedTuple):
    """Below which probability there is no answer."""

    threshold: float | None  # None: not known; with several labels an image: each class has its own
    notes: tuple[str, ...] = ()


def limit(classifier: Classifier, error: float | None = None, threshold: float | None = None) -> Limit:
    """The threshold given, or that which keeps the error, ERROR by default.

    Raises ValueError where an error is given that no threshold keeps, and with several labels an image.
    """
    if threshold is not None:
        if error is not None:
            raise ValueError("--error and --threshold are both given: choose one")
        if not 0 <= threshold <= 1:
            raise ValueError(f"--threshold {threshold}: must lie in [0, 1]")
        return Limit(threshold, (f"abstain: below a probability of {threshold:g}, as given",))
    if classifier.multi_label:
        if error is not None:
            raise ValueError(f"--error {error}: with several labels an image give a --threshold instead")
        own = "thresholds of the classes: those with the best F1 on held-out images"
        return Limit(None, (own if classifier.calibration.thresholds else "threshold of all classes: .5",))
    if classifier.held_out is None:
        if error is not None:
            raise ValueError(
                f"--error {error}: the model keeps no answers for held-out images to choose a threshold on: "
                "give a --threshold, or make the classifier with `omma finetune`"
            )
        return Limit(None, ("abstain is empty: the model keeps no answers for held-out images",))
    wanted = ERROR if error is None else error
    confidence, correct = classifier.held_out
    found = abstention(confidence.numpy(), correct.numpy(), wanted)
    if found is not None:
        return Limit(found.threshold, (_promise(found, wanted),))
    why = f"on {count(len(confidence), 'held-out image')} no threshold keeps the error at {wanted:.3g}"
    if error is not None:
        raise ValueError(f"--error {error}: {why}: name a larger one, or give a --threshold")
    return Limit(None, (f"abstain is empty: {why}",))


def _promise(found: Abstention, error: float) -> str:
    return (
        f"abstain: below a probability of {found.threshold:.3g}; of the other answers at most {error:.3g} "
        f"are wrong on images like these ({SURE:.0%} sure; of {count(found.images, 'held-out image')} "
        f"{found.answered:.1%} were answered, {found.wrong:.1%} of these wrongly)"
    )


def calibrate(
    classifier: Classifier, logits: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"]
) -> Classifier:
    """The classifier with temperature and thresholds chosen on held-out images, whose answers it keeps.

    logits: of images that it was not fitted on, in the order of its classes. targets: as for `temperature`.
    """
    t = temperature(logits, targets, classifier.multi_label)
    classifier = classifier.calibrated(temperature=t, images=len(logits))
    probabilities = classifier.probabilities(torch.from_numpy(logits)).numpy()
    if classifier.multi_label:
        return classifier.calibrated(thresholds=thresholds(probabilities, targets))
    correct = torch.from_numpy(probabilities.argmax(1) == targets.argmax(1))
    return replace(classifier, held_out=HeldOut(torch.from_numpy(probabilities.max(1)), correct))
