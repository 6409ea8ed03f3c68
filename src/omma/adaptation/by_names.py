"""`omma finetune MODEL LABELLED --adapt coop`, or `zeroshot`: a classifier from the names of the classes.

The run folder holds the model with a classifier, as any run of `omma finetune`. Images of the hold-out tell
how good it is, and calibrate its probabilities.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omma.adaptation import coop, head, head_fit, head_run, named
from omma.adaptation.head_run import Report, Task
from omma.adaptation.request import FineTuning
from omma.core.duration import seconds
from omma.core.protocols import Extras
from omma.core.words import count
from omma.data.sources import label_sets
from omma.evaluation import calibration, linear
from omma.evaluation.job import text_reader
from omma.pretraining import requirements
from omma.pretraining.events import Result, Stage
from omma.weights import Model, answers

# fields of `FineTuning` that matter here; others must be left as they are
USED = (
    "model", "images", "adapt", "adapt_options", "shots", "fraction", "holdout", "out", "label_depth",
    "group", "architecture", "allow_partial", "device", "precision", "seed", "listen",
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
    """Make the classifier and write its run folder; a finished one is left as it is.

    Raises ValueError, in one line, for anything the user can mend.
    """
    _refuse(tuning)
    config = requirements.with_options("adapt", tuning.adapt, KINDS[tuning.adapt], tuning.adapt_options or {})
    config = _general(tuning, config)
    started = time.monotonic()
    task = head_run.read(tuning)
    if task.images.label_sets is not None:
        raise ValueError(label_sets.refusal(task.images.source, task.images.classes, tuning.adapt))
    kind = task.with_group({"kind": tuning.adapt, **dataclasses.asdict(config), "holdout": tuning.holdout})
    kind |= {"budget": tuning.budget} if tuning.adapt == "coop" else {}
    source = str(tuning.model)
    configuration = head.run_configuration(
        task.model, task.labelled, source, kind, tuning.seed, task.precision
    )
    with head.claimed(task.folder, configuration):
        if not task.folder.finished:
            _write(tuning, task, config, configuration)
        result = head.read(task.folder)
    steps = result.facts["settings"].get("steps", 0)
    return head_run.finished(tuning, task, result, report, started, steps)


def _refuse(tuning: FineTuning) -> None:
    """ValueError for options without a meaning here."""
    used = (*USED, *(TRAINED if tuning.adapt == "coop" else ()))
    for field in dataclasses.fields(tuning):
        value = getattr(tuning, field.name)
        if field.name not in used and value != field.default and value != {}:
            flag = field.name.replace("_", "-")
            raise ValueError(f"--{flag} has no meaning with --adapt {tuning.adapt}: leave it out")


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


def _write(tuning: FineTuning, task: Task, config: Any, configuration: Mapping[str, Any]) -> None:
    """The folder's files: the model with a classifier, calibrated and judged on the held-out images."""
    started = time.monotonic()
    made, settings, notes = _made(tuning, task, config)
    classifier, held_out, bad = made.classifier, None, ()
    assert classifier is not None, "that of its classes' names"
    if len(task.held_out):
        images = task.images.subset(task.held_out)
        logits = answers.logits(
            made, images, task.device, task.precision,
            lambda done, total: tuning.listen(Stage("held-out images", done, total)),
        )  # fmt: skip
        assert images.labels is not None, "guaranteed by Needs.labels"
        labels, bad = images.labels[logits.indices], logits.bad
        classifier = calibration.calibrate(
            classifier, logits.vectors, linear.one_hot(labels, len(classifier.classes))
        )
        protocol = f"held out, {count(len(labels), 'labelled image')}"
        groups = task.groups_of(task.held_out[logits.indices])
        held_out = head_fit.HeldOut(logits=logits.vectors, labels=labels, protocol=protocol, groups=groups)
    facts = {
        "adapt": tuning.adapt,
        "images": len(task.learned),
        "settings": settings,
        "floors": [],
        "notes": [*task.notes, *task.held_out_notes, *notes],
        "seconds": round(time.monotonic() - started, 1),
        **head.judged(classifier, held_out, tuning.seed),
    }
    own = classifier.extras()
    extras = Extras({**made.extras.tensors, **own.tensors}, {**made.extras.facts, **own.facts})
    skipped = [*task.images.skipped, *bad]
    head.finish(task.folder, configuration, made, extras, facts, skipped, settings.get("steps", 0))


def _made(tuning: FineTuning, task: Task, config: Any) -> tuple[Model, dict[str, Any], list[str]]:
    """The model with a classifier, how it was made, and notes."""
    name, listen, images = str(tuning.model), tuning.listen, task.images.subset(task.learned)
    if tuning.adapt == "zeroshot":
        reader = text_reader(task.model, name, config.prompts, config.merges, config.descriptions)
        made = named.with_names(task.model, reader, images.classes, name, task.device)
        return made, reader.settings(images.classes), reader.notes(images.classes)
    made, result = coop.fit(
        task.model,
        images,
        config,
        name=name,
        merges=config.merges,
        seed=tuning.seed,
        device=task.device,
        precision=task.precision,
        cache=task.cache,
        seconds=None if tuning.budget is None else seconds(tuning.budget),
        extracted=lambda done, total: listen(Stage("features", done, total)),
        progress=lambda at: listen(Stage("steps of CoOp", at.step, at.steps)),
    )
    return made, {"steps": result.steps, "epochs": result.epochs}, result.notes()
