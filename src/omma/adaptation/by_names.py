"""`omma finetune MODEL LABELLED --adapt coop`, or `zeroshot`: a classifier from the names of the classes.

The run folder holds the model with a classifier, as any run of `omma finetune`. Images of the hold-out tell
how good it is, and calibrate its probabilities.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omma import weights
from omma.adaptation import coop, named
from omma.adaptation.head_run import Report
from omma.adaptation.request import FineTuning
from omma.core import device as devices
from omma.core import launcher
from omma.core.duration import seconds
from omma.core.protocols import Needs
from omma.data.sources.collection import IndexedImages
from omma.data.sources.skipped import write_skipped
from omma.evaluation import calibration, confidence
from omma.evaluation.job import text_reader
from omma.features.extract import extract
from omma.pretraining import data, init_weights, requirements
from omma.pretraining.events import Note, Result, Stage
from omma.pretraining.folder import RunFolder
from omma.weights import Model, store
from omma.weights.classifier import Classifier

NEEDS = Needs(labels=True, holds_out=True)
# fields of `FineTuning` that matter here; others must be left as they are
USED = (
    "model", "images", "adapt", "adapt_options", "shots", "fraction", "holdout", "out", "label_depth",
    "allow_partial", "device", "precision", "seed", "listen",
)  # fmt: skip
TRAINED = ("budget", "epochs", "batch_size", "lr")  # ... and in CoOp


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """The options --adapt.KEY of `zeroshot`, as of `omma evaluate --protocol zeroshot`."""

    prompts: str | None = None  # a file of templates, one a line
    descriptions: str | None = None  # a JSON file of sentences about each class
    merges: str | None = None  # the tokenizer's, for published CLIP weights that lie without it


@dataclass(frozen=True, kw_only=True)
class Options(coop.Config):
    """The options --adapt.KEY of `coop`."""

    merges: str | None = None  # as above


KINDS = {"coop": Options(), "zeroshot": ZeroShot()}


def run(tuning: FineTuning, report: Report | None = None) -> Result:
    """Make the classifier and write its run folder; a finished one is left as it is. report: is not called.

    Raises ValueError, in one line, for anything the user can mend.
    """
    _refuse(tuning)
    config = requirements.with_options("adapt", tuning.adapt, KINDS[tuning.adapt], tuning.adapt_options or {})
    config = _general(tuning, config)
    device = devices.pick_device(tuning.device)
    precision = devices.pick_precision(tuning.precision, device)
    request = tuning.request()
    images = data.prepare(data.open_source(request), NEEDS, tuning.seed, tuning.listen, request.supervision)
    source = images.source
    if source.label_sets is not None:
        raise ValueError(f"{source.source} has several labels an image: --adapt {tuning.adapt} takes one")
    model = weights.load(tuning.model, allow_partial=tuning.allow_partial)
    out = tuning.out or init_weights.default_out(request, images.stem)
    assert out is not None
    folder = RunFolder(Path(out))
    configuration = _configuration(tuning, model, source, config, precision)
    folder.check(configuration)
    started = time.monotonic()
    with folder.locked():
        folder.claim(configuration)
        if (before := folder.result()) is not None:
            return Result(out=folder.path, steps=before["steps"], seconds=before["seconds"], verdict=None)
        made, steps, notes = _made(tuning, config, model, source.subset(images.training), device, precision)
        held_out = source.subset(images.sample) if images.held_out else None
        made, more, bad = _judged(tuning, made, held_out, device, precision)
        write_skipped(folder.path / "skipped.csv", [*source.skipped, *bad])
        origin = {**configuration, "steps": steps, "seconds": round(time.monotonic() - started, 1)}
        store.save(folder.path, made.encoder, made.preprocess, origin, made.extras)
    for note in (*images.notes, *notes, *more):
        tuning.listen(Note(note))
    return Result(out=folder.path, steps=steps, seconds=origin["seconds"], verdict=None)


def _refuse(tuning: FineTuning) -> None:
    """ValueError for options without a meaning here, and for several processes."""
    used = (*USED, *(TRAINED if tuning.adapt == "coop" else ()))
    for field in dataclasses.fields(tuning):
        value = getattr(tuning, field.name)
        if field.name not in used and value != field.default and value != {}:
            flag = field.name.replace("_", "-")
            raise ValueError(f"--{flag} has no meaning with --adapt {tuning.adapt}: leave it out")
    if launcher.ranks().world_size > 1:
        raise ValueError(f"--adapt {tuning.adapt} runs on one process: start it without torchrun")


def _general(tuning: FineTuning, config: Any) -> Any:
    """The general options --epochs, --lr and --batch-size as CoOp's own."""
    if tuning.adapt != "coop":
        return config
    given = {"epochs": tuning.epochs, "lr": tuning.lr, "batch": tuning.batch_size}
    given = {name: value for name, value in given.items() if value not in (None, "auto")}
    if (epochs := given.get("epochs")) is not None:
        if epochs != int(epochs):
            raise ValueError(f"--epochs {epochs}: CoOp trains whole epochs")
        given["epochs"] = int(epochs)
    return dataclasses.replace(config, **given)


def _configuration(
    tuning: FineTuning, model: Model, images: IndexedImages, config: Any, precision: torch.dtype
) -> dict[str, Any]:
    """config.json: what must be the same when the command is repeated."""
    return {
        "images": images.source,
        "fingerprint": images.fingerprint,
        "method": "finetune",
        "model": model.encoder.name,
        "image_size": model.preprocess.size,
        "adapt": {"kind": tuning.adapt, **dataclasses.asdict(config)},
        "init": {"source": str(tuning.model), "digest": model.digest},
        "labels": "learned",
        "supervision": dataclasses.asdict(tuning.request().supervision),
        "end": {"budget": tuning.budget} if tuning.adapt == "coop" else {"fits": 1},
        "seed": tuning.seed,
        "precision": devices.precision_name(precision),
    }


def _made(
    tuning: FineTuning,
    config: Any,
    model: Model,
    images: IndexedImages,
    device: torch.device,
    precision: torch.dtype,
) -> tuple[Model, int, list[str]]:
    """The model with a classifier, the steps trained, and notes."""
    name, listen = str(tuning.model), tuning.listen
    if tuning.adapt == "zeroshot":
        reader = text_reader(model, name, config.prompts, config.merges, config.descriptions)
        made = named.with_names(model, reader, images.classes, name, device)
        return made, 0, reader.notes(images.classes)
    made, result = coop.fit(
        model,
        images,
        config,
        name=name,
        merges=config.merges,
        seed=tuning.seed,
        device=device,
        precision=precision,
        seconds=None if tuning.budget is None else seconds(tuning.budget),
        extracted=lambda done, total: listen(Stage("features", done, total)),
        progress=lambda at: listen(Stage("steps of CoOp", at.step, at.steps)),
    )
    return made, result.steps, result.notes()


def _judged(
    tuning: FineTuning,
    model: Model,
    images: IndexedImages | None,
    device: torch.device,
    precision: torch.dtype,
) -> tuple[Model, list[str], tuple[tuple[str, str], ...]]:
    """The model with calibrated probabilities; its accuracy on images that it did not learn from."""
    if images is None:
        return model, [], ()
    features = extract(
        model.encoder,
        images,
        model.preprocess,
        device,
        precision,
        progress=lambda done, total: tuning.listen(Stage("features, held out", done, total)),
    )
    classifier, assured = Classifier.of(model), images.labels
    assert classifier is not None
    assert assured is not None, "guaranteed by NEEDS"
    labels = assured[features.indices]
    logits = classifier.logits(torch.from_numpy(features.vectors)).numpy()
    classifier = calibration.calibrate(classifier, logits, np.eye(len(classifier.classes))[labels])
    correct = logits.argmax(1) == labels
    low, high = confidence.bootstrap(correct, seed=tuning.seed)
    note = f"top-1 {correct.mean():.1%} ({100 * low:.1f} to {100 * high:.1f}) on held-out images"
    extras: Mapping[str, Any] = classifier.extras()._asdict()
    calibrated = model.extras._replace(
        tensors={**model.extras.tensors, **extras["tensors"]}, facts={**model.extras.facts, **extras["facts"]}
    )
    return Model(model.encoder, model.preprocess, model.provenance, calibrated), [note], features.bad
