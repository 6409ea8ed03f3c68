"""`--adapt head`: a linear classifier on the features of a frozen encoder, each computed once.

Seconds, not minutes: an image passes the network once, and L-BFGS does the rest. The penalty, the temperature
and all figures come from cross-validation on the labelled images; then the classifier is fitted on all.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.adaptation import floors
from omma.core import device as devices
from omma.core import files
from omma.core.checks import one_of
from omma.core.protocols import Preprocess
from omma.core.words import count
from omma.data.sources import label_sets
from omma.data.sources.collection import IndexedImages
from omma.data.sources.skipped import write_skipped
from omma.evaluation import calibration, linear, metrics
from omma.evaluation.split import FEW, folds, holdouts
from omma.features.extract import FeatureSet, extract, pixels
from omma.pretraining.events import Event, Stage
from omma.pretraining.folder import RunFolder
from omma.pretraining.request import ignore
from omma.train.class_weights import class_weights, positive_weights
from omma.weights import Model, store
from omma.weights.classifier import Classifier

RESULT = "finetune.json"
BALANCES = ("none", "loss")
CLASSIFIERS = ("auto", "softmax", "means")
LONE = 10.0  # penalty where nothing can be held out, since every class has a single image (docs/finetune.md)
END = {"fits": 1}  # of a run, in config.json


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
class Result:
    """What became of it."""

    out: Path
    facts: Mapping[str, Any] = field(repr=False)  # finetune.json

    def lines(self) -> list[str]:
        """For a person: the figure on held-out images with its interval, and the floors beside it."""
        facts, lines = self.facts, []
        metric = "mean average precision" if facts["multi_label"] else "top-1"
        if (held_out := facts.get("held_out")) is not None:
            main = held_out["metrics"]["map_macro" if facts["multi_label"] else "top1"]
            lines.append(f"{metric} {_interval(main)} ({held_out['protocol']})")
        for floor in facts["floors"]:
            lines.append(f"{floor['name']} on {floor['features']}: {_interval(floor)}")
        return [*lines, *facts["notes"]]


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval95"]
    return f"{entry['value']:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def fit(
    model: Model,
    images: IndexedImages,
    *,
    out: RunFolder,
    source: str,
    config: Config = Config(),
    seed: int = 0,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
    precision: torch.dtype = torch.float32,
    cache: Path | None = None,
    beside: bool = True,
    extra: Mapping[str, Any] = MappingProxyType({}),
    notes: Sequence[str] = (),
    listen: Callable[[Event], None] = ignore,
) -> Result:
    """Fit a classifier on the labelled ones of these images, and write its run folder.

    images: none of a test part. source: the model as the user named it. cache: folder for features. beside:
    fit the floors, too. extra: further entries of finetune.json. notes: what to know of the choice of images.
    A folder that is finished is read again. Raises ValueError for a folder of another run, and where the
    labels do not suffice.
    """
    kind = {"kind": "head", **dataclasses.asdict(config)}
    configuration = run_configuration(model, images, source, kind, seed, precision)
    with claimed(out, configuration):
        if out.finished:
            return read(out)
        started = time.monotonic()
        labels, rows = labelled(images)
        features = _features(model, images.subset(rows), device, precision, cache, listen)
        labels = labels[rows[features.indices]]
        listen(Stage("fitting the classifier"))
        fitted = fit_features(
            features.vectors, labels, images.classes, config=config, seed=seed, device=_solver_device(device)
        )
        facts = {"adapt": "head", "settings": fitted.settings, "images": len(labels), **extra}
        facts["floors"] = []
        if beside and fitted.held_out is not None:
            facts["floors"] = _floors(model.preprocess, images.subset(rows), features, labels, seed, listen)
        facts["notes"] = [*notes, *fitted.notes, *_left_out(images, rows, features)]
        facts["seconds"] = round(time.monotonic() - started, 1)
        skipped = [*images.skipped, *features.bad]
        facts |= judged(fitted.classifier, fitted.held_out, seed)
        return finish(out, configuration, model, fitted.classifier, facts, skipped)


@contextlib.contextmanager
def claimed(out: RunFolder, configuration: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder this run's, and keep other processes from it meanwhile."""
    out.check(configuration)
    with out.locked():
        out.claim(configuration)
        yield


def judged(classifier: Classifier, held_out: "HeldOut | None", seed: int) -> dict[str, Any]:
    """What finetune.json says of the classifier itself."""
    facts: dict[str, Any] = {
        "classes": list(classifier.classes),
        "multi_label": classifier.multi_label,
        "calibration": {"temperature": classifier.calibration.temperature},
    }
    return facts | ({} if held_out is None else {"held_out": held_out.facts(classifier, seed)})


def finish(
    out: RunFolder,
    configuration: Mapping[str, Any],
    model: Model,
    classifier: Classifier,
    facts: Mapping[str, Any],
    skipped: Sequence[tuple[str, str]],
) -> Result:
    """Write the folder's files, the weights last: with them the run is finished."""
    write_skipped(out.path / "skipped.csv", skipped)
    facts = {"schema": 1, **facts}
    files.write_json(out.path / RESULT, facts)
    origin = {**configuration, "seconds": facts["seconds"], "steps": 0}
    store.save(out.path, model.encoder, model.preprocess, origin, classifier.extras())
    return Result(out=out.path, facts=facts)


def read(out: RunFolder) -> Result:
    """The result of a finished run."""
    remedy = "repeat the command with another --out"
    return Result(out=out.path, facts=files.read_json(out.path / RESULT, remedy))


# ---------------------------------------------------------------- features in, a classifier out
@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Logits of images by classifiers that were not fitted on them."""

    logits: Float[np.ndarray, "h k"]
    labels: Int[np.ndarray, "h *k"]
    protocol: str  # in words

    def facts(self, classifier: Classifier, seed: int) -> dict[str, Any]:
        """Figures for JSON, of calibrated probabilities; `ece_before` is that of temperature 1."""
        before = classifier.calibrated(temperature=1.0)
        p, raw = (c.probabilities(torch.from_numpy(self.logits)).numpy() for c in (classifier, before))
        if classifier.multi_label:
            limits = np.array(classifier.calibration.thresholds or 0.5)
            found = metrics.multi_label(p, self.labels, limits, seed).overall
        else:
            found = metrics.single_label(
                p.argmax(1), self.labels, len(classifier.classes), p, True, seed=seed
            ).overall
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
) -> Fitted:
    """A calibrated classifier of features. labels: one an image, or label sets. Raises ValueError."""
    several, targets = labels.ndim == 2, linear.one_hot(labels, len(classes))
    codes = label_sets.strata(labels) if several else labels
    loss: linear.Loss = "sigmoid" if several else "softmax"
    options: dict[str, Any] = {"loss": loss, "weights": _weights(labels, config), "seed": seed}
    options["device"] = device
    parts = folds(codes, seed)
    if not parts:
        means = config.classifier != "softmax" and not several
        settings = {"solver": "means"} if means else {"solver": "lbfgs", "penalty": LONE}
        found = _classifier(linear.fit(x, targets, settings, **options), classes, several)
        note = "every class has a single image: nothing can be held out, so nothing is chosen or calibrated"
        return Fitted(classifier=found, settings=settings, held_out=None, notes=(note,))
    pairs = parts if len(x) < FEW else holdouts(codes, seed)
    settings = _settings(x, targets, pairs, config, options)
    if settings["solver"] == "sgd":  # of many images a single part suffices
        parts = pairs
    logits = np.full((len(x), len(classes)), np.nan, np.float32)
    for learned, held_out in parts:
        of_part = linear.fit(x[learned], targets[learned], settings, **options)
        logits[held_out] = of_part(x[held_out])
    rows = np.flatnonzero(~np.isnan(logits[:, 0]))
    protocol = f"{len(parts)}-fold cross-validation" if len(parts) > 1 else "held out"
    protocol += f", {count(len(rows), 'labelled image')}, seed {seed}"
    classifier = _classifier(linear.fit(x, targets, settings, **options), classes, several)
    classifier = calibration.calibrate(classifier, logits[rows], targets[rows])
    held_out = HeldOut(logits=logits[rows], labels=labels[rows], protocol=protocol)
    return Fitted(classifier=classifier, settings=settings, held_out=held_out, notes=())


def _settings(
    x: np.ndarray, targets: np.ndarray, pairs: linear.Pairs, config: Config, options: dict[str, Any]
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


# ---------------------------------------------------------------- steps
def labelled(images: IndexedImages) -> tuple[Int[np.ndarray, "n *k"], Int[np.ndarray, "m"]]:
    """Labels, or label sets, of all images; the rows that have any. ValueError for fewer than two classes."""
    sets = label_sets.of(images)
    if sets is not None:
        rows = np.flatnonzero(~label_sets.unlabelled(sets))
        if not len(rows):
            raise ValueError(f"{images.source}: no image has a label")
        return sets, rows
    labels = images.labels
    if labels is None or len(np.unique(labels[labels >= 0])) < 2:
        raise ValueError(
            f"{images.source}: a classifier needs labels of at least two classes: put images into one folder "
            "a class, or give a table with the columns path and label"
        )
    return labels, np.flatnonzero(labels >= 0)


def run_configuration(
    model: Model,
    images: IndexedImages,
    source: str,
    kind: Mapping[str, Any],
    seed: int,
    precision: torch.dtype,
) -> dict[str, Any]:
    return {
        "images": images.source,
        "fingerprint": images.fingerprint,
        "method": "finetune",
        "model": model.encoder.name,
        "image_size": model.preprocess.size,
        "adapt": dict(kind),
        "init": {"source": source, "digest": model.digest},
        "labels": "learned",
        "end": END,
        "seed": seed,
        "precision": devices.precision_name(precision),
    }


def _features(
    model: Model,
    images: IndexedImages,
    device: torch.device,
    precision: torch.dtype,
    cache: Path | None,
    listen: Callable[[Event], None],
) -> FeatureSet:
    return extract(
        model.encoder,
        images,
        model.preprocess,
        device,
        precision,
        cache=cache,
        model_digest=model.digest,
        progress=lambda done, total: listen(Stage("features", done, total)),
    )


def _floors(
    preprocess: Preprocess,
    images: IndexedImages,
    features: FeatureSet,
    labels: Int[np.ndarray, "n *k"],
    seed: int,
    listen: Callable[[Event], None],
) -> list[dict[str, Any]]:
    """Simpler classifiers on the same images, of features and of pixels."""
    raw = pixels(images, preprocess, progress=lambda done, total: listen(Stage("pixels", done, total)))
    both = np.intersect1d(raw.indices, features.indices)
    found = []
    for name, each in (("features", features), ("pixels", raw)):
        listen(Stage(f"floors on {name}"))
        x = each.vectors[np.searchsorted(each.indices, both)]
        y = labels[np.searchsorted(features.indices, both)]
        found += [
            {"features": name, **floor} for floor in floors.floors(x, y, seed, softmax=name == "pixels")
        ]
    return found


def _left_out(images: IndexedImages, rows: Int[np.ndarray, "m"], features: FeatureSet) -> list[str]:
    notes = []
    if others := len(images) - len(rows):
        notes.append(f"left out, without a label: {count(others, 'image')}")
    if features.bad:
        path, reason = features.bad[0]
        notes.append(f"left out, not read: {count(len(features.bad), 'file')} ({path}: {reason})")
    return notes


def _solver_device(device: torch.device) -> torch.device:
    return device if device.type == "cuda" else torch.device("cpu")  # other devices are slower at it
