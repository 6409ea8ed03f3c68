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
from jaxtyping import Int

from omma.adaptation import floors
from omma.adaptation.head_fit import Config, HeldOut, fit_features
from omma.core import device as devices
from omma.core import files
from omma.core.protocols import Extras, Preprocess
from omma.core.words import count
from omma.data.sources import label_sets
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.skipped import write_skipped
from omma.features.extract import FeatureSet, extract, pixels
from omma.pretraining.events import Event, Stage
from omma.pretraining.folder import RunFolder
from omma.pretraining.request import ignore
from omma.weights import Model, store
from omma.weights.classifier import Classifier

END = {"fits": 1}  # of a run, in config.json


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
    config: Config = Config(),  # noqa: B008 (frozen)
    seed: int = 0,
    precision: torch.dtype = torch.float32,
    group: str | None = None,
    **options: Any,
) -> Result:
    """Fit a classifier on the labelled ones of these images, and write its run folder.

    images: none of a test part. source: the model as the user named it. group: the column of `groups`, if
    there are any. options: as for `write`. A folder that is finished is read again. Raises ValueError for a
    folder of another run, and where the labels do not suffice.
    """
    kind = {"kind": "head", **dataclasses.asdict(config)} | ({} if group is None else {"group": group})
    configuration = run_configuration(model, images, source, kind, seed, precision)
    with claimed(out, configuration):
        if out.finished:
            return read(out)
        return write(out, configuration, model, images, config, seed=seed, precision=precision, **options)


def write(
    out: RunFolder,
    configuration: Mapping[str, Any],
    model: Model,
    images: IndexedImages,
    config: Config,
    *,
    seed: int,
    precision: torch.dtype,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
    cache: Path | None = None,
    extra: Mapping[str, Any] = MappingProxyType({}),
    groups: Int[np.ndarray, "n"] | None = None,
    notes: Sequence[str] = (),
    listen: Callable[[Event], None] = ignore,
) -> Result:
    """Fit it and write the files of a folder that is `claimed`; floors stand beside it.

    cache: folder for features. extra: further entries of finetune.json. groups: of the images; none is held
    out in part. notes: what to know of the choice of images.
    """
    started = time.monotonic()
    labels, rows = labelled(images)
    features = extract(
        model.encoder, images.subset(rows), model.preprocess, device, precision, cache=cache,
        model_digest=model.digest, progress=lambda done, total: listen(Stage("features", done, total)),
    )  # fmt: skip
    labels = labels[rows[features.indices]]
    within = None if groups is None else groups[rows[features.indices]]
    listen(Stage("fitting the classifier"))
    fitted = fit_features(
        features.vectors, labels, images.classes, config=config, seed=seed, device=solver_device(device),
        groups=within,
    )  # fmt: skip
    facts = {"adapt": "head", "settings": fitted.settings, "images": len(labels), "floors": [], **extra}
    if fitted.held_out is not None:
        subset = images.subset(rows)
        facts["floors"] = _floors(model.preprocess, subset, features, labels, within, seed, listen)
    facts["notes"] = [*notes, *fitted.notes, *_left_out(images, rows, features)]
    facts["seconds"] = round(time.monotonic() - started, 1)
    facts |= judged(fitted.classifier, fitted.held_out, seed)
    skipped = [*images.skipped, *features.bad]
    return finish(out, configuration, model, fitted.classifier.extras(), facts, skipped)


@contextlib.contextmanager
def claimed(out: RunFolder, configuration: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder this run's, and keep other processes from it meanwhile."""
    out.check(configuration)
    with out.locked():
        out.claim(configuration)
        yield


def judged(classifier: Classifier, held_out: HeldOut | None, seed: int) -> dict[str, Any]:
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
    extras: Extras,
    facts: Mapping[str, Any],
    skipped: Sequence[tuple[str, str]],
    steps: int = 0,
) -> Result:
    """Write the folder's files, the weights last: with them the run is finished.

    extras: what is saved beside the encoder, the classifier among it.
    """
    write_skipped(out.path / "skipped.csv", skipped)
    facts = {"schema": 1, **facts}
    files.write_json(out.finetuned, facts)
    origin = {**configuration, "seconds": facts["seconds"], "steps": steps}
    store.save(out.path, model.encoder, model.preprocess, origin, extras)
    return Result(out=out.path, facts=facts)


def read(out: RunFolder) -> Result:
    """The result of a finished run."""
    remedy = "repeat the command with another --out"
    return Result(out=out.path, facts=files.read_json(out.finetuned, remedy))


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


def _floors(
    preprocess: Preprocess,
    images: IndexedImages,
    features: FeatureSet,
    labels: Int[np.ndarray, "n *k"],
    groups: Int[np.ndarray, "n"] | None,
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
        at = np.searchsorted(features.indices, both)
        within = None if groups is None else groups[at]
        kinds = floors.floors(x, labels[at], seed, softmax=name == "pixels", groups=within)
        found += [{"features": name, **floor} for floor in kinds]
    return found


def _left_out(images: IndexedImages, rows: Int[np.ndarray, "m"], features: FeatureSet) -> list[str]:
    notes = []
    if others := len(images) - len(rows):
        notes.append(f"left out, without a label: {count(others, 'image')}")
    if features.bad:
        path, reason = features.bad[0]
        notes.append(f"left out, not read: {count(len(features.bad), 'file')} ({path}: {reason})")
    return notes


def solver_device(device: torch.device) -> torch.device:
    return device if device.type == "cuda" else torch.device("cpu")  # other devices are slower at it
