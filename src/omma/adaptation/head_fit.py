"""A calibrated linear classifier of features: fitted, and judged by cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.core.checks import one_of
from omma.core.words import count
from omma.data.sources import label_sets
from omma.evaluation import calibration, confidence, linear, metrics
from omma.evaluation.split import FEW, Pairs, folds, holdouts
from omma.train.class_weights import class_weights, positive_weights
from omma.weights.classifier import Classifier

BALANCES = ("none", "loss")
CLASSIFIERS = ("auto", "softmax", "means")
LONE = 10.0  # penalty where nothing can be held out, since every class has a single image (docs/finetune.md)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options --adapt.KEY of a head."""

    classifier: str = "auto"  # softmax, or means of the classes' features; auto: the better one
    balance: str = "none"  # "loss": classes count alike, whatever their number of images

    def __post_init__(self) -> None:
        one_of("adapt.classifier", self.classifier, CLASSIFIERS)
        if self.balance == "sampler":
            raise ValueError("balance='sampler': a head sees all images at once; choose 'loss'")
        one_of("balance", self.balance, BALANCES)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Logits of images by classifiers that were not fitted on them."""

    logits: Float[np.ndarray, "h k"]
    labels: Int[np.ndarray, "h *k"]
    protocol: str  # in words
    groups: Int[np.ndarray, "h"] | None = None  # which intervals draw as a whole

    def facts(self, classifier: Classifier, seed: int) -> dict[str, Any]:
        """Figures for JSON, of calibrated probabilities; `ece_before` is that of temperature 1."""
        before, groups = classifier.calibrated(temperature=1.0), confidence.several(self.groups)
        p, raw = (c.probabilities(torch.from_numpy(self.logits)).numpy() for c in (classifier, before))
        if classifier.multi_label:
            limits = np.array(classifier.calibration.thresholds or 0.5)
            found = metrics.multi_label(p, self.labels, limits, seed, groups).overall
        else:
            answers = p.argmax(1), self.labels, len(classifier.classes), p, True
            found = metrics.single_label(*answers, seed=seed, groups=groups).overall
        figures = {name: {"value": f.value, "interval95": list(f.interval95)} for name, f in found.items()}
        facts = {"protocol": self.protocol, "images": len(p), "metrics": figures}
        if not classifier.multi_label:
            right = raw.argmax(1) == self.labels
            facts["ece_before"] = metrics.calibration_error(raw.max(1), right)
            facts["reliability"] = [reliability(x, self.labels) for x in (raw, p)]
        return facts


def reliability(
    probabilities: Float[np.ndarray, "h k"], labels: Int[np.ndarray, "h"]
) -> list[dict[str, float]]:
    """For each bin of confidence with images: their number, mean confidence and share of right answers."""
    top, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
    bins = metrics.bin_of(top)
    return [
        {
            "images": int((bins == b).sum()),
            "confidence": float(top[bins == b].mean()),
            "accuracy": float(right[bins == b].mean()),
        }
        for b in np.unique(bins)
    ]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A classifier fitted on all images, with what was held out to calibrate it."""

    classifier: Classifier
    settings: dict[str, Any]
    held_out: HeldOut | None  # None: every class has a single image
    notes: tuple[str, ...]


def fit_features(
    x: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n *k"],
    classes: Sequence[str],
    *,
    config: Config = Config(),
    seed: int = 0,
    device: torch.device | str = "cpu",
    groups: Int[np.ndarray, "n"] | None = None,
) -> Fitted:
    """A calibrated classifier of features. labels: one an image, or label sets. Raises ValueError.

    groups: of the images; no fold holds out a part of one, and intervals draw whole ones.
    """
    several, targets = labels.ndim == 2, linear.one_hot(labels, len(classes))
    codes = label_sets.strata(labels) if several else labels
    loss: linear.Loss = "sigmoid" if several else "softmax"
    options: dict[str, Any] = {"loss": loss, "weights": _weights(labels, config), "seed": seed}
    options["device"] = device
    parts = folds(codes, seed, groups=groups)
    if not parts:
        means = config.classifier != "softmax" and not several
        settings = {"solver": "means"} if means else {"solver": "lbfgs", "penalty": LONE}
        found = _classifier(linear.fit(x, targets, settings, **options), classes, several)
        alone = "a single image" if groups is None else "images of a single group alone"
        note = f"every class has {alone}: nothing can be held out, so nothing is chosen or calibrated"
        return Fitted(classifier=found, settings=settings, held_out=None, notes=(note,))
    pairs = parts if len(x) < FEW else holdouts(codes, seed, groups=groups)
    settings = _settings(x, targets, pairs, config, options)
    if settings["solver"] == "sgd":  # of many images a single part suffices
        parts = pairs
    logits = np.full((len(x), len(classes)), np.nan, np.float32)
    for learned, held_out in parts:
        of_part = linear.fit(x[learned], targets[learned], settings, **options)
        logits[held_out] = of_part(x[held_out])
    rows = np.flatnonzero(~np.isnan(logits[:, 0]))
    protocol = f"{len(parts)}-fold cross-validation" if len(parts) > 1 else "held out"
    protocol += " by group" * (groups is not None) + f", {count(len(rows), 'labelled image')}, seed {seed}"
    within = None if groups is None else groups[rows]
    classifier = _classifier(linear.fit(x, targets, settings, **options), classes, several)
    classifier = calibration.calibrate(classifier, logits[rows], targets[rows])
    held_out = HeldOut(logits=logits[rows], labels=labels[rows], protocol=protocol, groups=within)
    return Fitted(classifier=classifier, settings=settings, held_out=held_out, notes=())


def _settings(
    x: np.ndarray, targets: np.ndarray, pairs: Pairs, config: Config, options: dict[str, Any]
) -> dict[str, Any]:
    """Of class means and a linear classifier the one with the better held-out score; its settings."""
    means: dict[str, Any] = {"solver": "means"}
    if config.classifier == "means":
        return means
    chosen = linear.choose(x, targets, pairs=pairs, **options)
    if config.classifier == "softmax" or options["loss"] == "sigmoid":
        return chosen
    scores = [linear.score(linear.class_means(x[f], targets[f])(x[h]), targets[h]) for f, h in pairs]
    means["held_out_top1"] = round(float(np.mean(scores)), 4)
    return means if means["held_out_top1"] >= chosen["held_out_top1"] else chosen


def _classifier(found: linear.Linear, classes: Sequence[str], several: bool) -> Classifier:
    weight, bias = map(torch.from_numpy, found.folded())
    return Classifier(classes=tuple(classes), weight=weight, bias=bias, multi_label=several)


def _weights(labels: Int[np.ndarray, "n *k"], config: Config) -> Float[np.ndarray, "k"] | None:
    if config.balance == "none":
        return None
    return positive_weights(labels) if labels.ndim == 2 else class_weights(labels, int(labels.max()) + 1)
