"""`omma finetune --adapt head`, and what it shares with `--adapt auto`: the labelled images and the model."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from omma import weights
from omma.adaptation import head, head_fit
from omma.adaptation.request import FineTuning
from omma.core import device as devices
from omma.core import dist, outputs
from omma.core.caches import features_folder
from omma.core.errors import need
from omma.core.protocols import Images
from omma.data.sources.groups import Groups
from omma.data.sources.indexed import IndexedImages
from omma.pretraining import data, init_weights, requirements, same_images
from omma.pretraining.events import Note, Result, Stage
from omma.pretraining.folder import RunFolder
from omma.pretraining.health import Verdict
from omma.pretraining.request import ENDS
from omma.weights import Model

Report = Callable[[RunFolder, Images, int, Callable[[Any], None]], None]
TRAINED = (
    *ENDS, "lr", "recipe", "image_size", "batch_size", "accumulate", "recompute", "head_warmup",
    "encoder_lr_scale", "options", "model_options", "track", "profile",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Task:
    """What there is to fine-tune: model, labelled images, place and machine."""

    model: Model
    images: IndexedImages  # all of the source
    learned: Int[np.ndarray, "n"]  # rows to learn from ...
    held_out: Int[np.ndarray, "h"]  # ... and to judge by; none of very few
    notes: tuple[str, ...]  # on the choice of images ...
    held_out_notes: tuple[str, ...]  # ... and on the hold-out
    folder: RunFolder
    device: torch.device
    precision: torch.dtype
    cache: Path  # of features
    groups: Groups | None = None  # of all of the source

    @property
    def labelled(self) -> IndexedImages:
        """All that may be learned from."""
        return self.images.subset(np.union1d(self.learned, self.held_out))

    def groups_of(self, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"] | None:
        """What belongs together, of rows of the source."""
        return None if self.groups is None else self.groups.codes[rows]

    def with_group(self, kind: Mapping[str, Any]) -> dict[str, Any]:
        """What the configuration of a run says of its kind, with the column of groups if there are any."""
        return {**kind, **({} if self.groups is None else {"group": self.groups.name})}


def read(tuning: FineTuning) -> Task:
    """Open the images and load the model; ValueError for what cannot be done."""
    if dist.is_distributed():
        raise ValueError(f"--adapt {tuning.adapt} runs in one process: leave torchrun out")
    request = tuning.request()
    if tuning.track != "none":
        need(tuning.track, tuning.track)
    if tuning.out is not None and not RunFolder(Path(tuning.out)).finished:
        outputs.check_folder(tuning.out)
    device = devices.pick_device(tuning.device)
    opened = data.open_source(request)
    needs = requirements.of_request(request)
    supervision, group = request.supervision, request.group
    found = data.prepare(opened, needs, tuning.seed, tuning.listen, supervision, group=group)
    held_out = np.setdiff1d(found.rows, found.training)
    out = Path(tuning.out) if tuning.out is not None else None
    if out is None:
        default = init_weights.default_out(dataclasses.replace(request, adapt=None), found.stem)
        assert default is not None, "it starts from weights"
        folder = same_images.default_folder(default.with_name(f"{default.name}-{tuning.adapt}"), opened)
    else:
        folder = RunFolder(out)
    tuning.listen(Stage("loading the model"))
    model = weights.load(tuning.model, architecture=tuning.architecture, allow_partial=tuning.allow_partial)
    return Task(
        model=model,
        images=found.source,
        learned=found.training,
        held_out=held_out,
        notes=found.notes,
        held_out_notes=found.held_out_notes,
        folder=folder,
        device=device,
        precision=devices.pick_precision(folder.config().get("precision", tuning.precision), device),
        cache=features_folder(tuning.model),
        groups=found.groups,
    )


def run(tuning: FineTuning, report: Report | None = None) -> Result:
    """Fit a head on the labelled images; the run folder is the result. Raises ValueError."""
    refuse_training_options(tuning)
    started = time.monotonic()
    task = read(tuning)
    result = head.fit(
        task.model,
        task.labelled,
        out=task.folder,
        source=str(tuning.model),
        config=config(tuning),
        seed=tuning.seed,
        device=task.device,
        precision=task.precision,
        cache=task.cache,
        group=None if task.groups is None else task.groups.name,
        groups=task.groups_of(np.union1d(task.learned, task.held_out)),
        notes=task.notes,  # not those on the hold-out: a head cross-validates on all images
        listen=tuning.listen,
    )
    return finished(tuning, task, result, report, started)


def finished(
    tuning: FineTuning, task: Task, result: head.Result, report: Report | None, started: float, steps: int = 0
) -> Result:
    """Tell what became of it, and write the report if there is none yet. started: by the monotonic clock."""
    for text in result.lines():
        tuning.listen(Note(text))
    if report is not None and not task.folder.report.exists():
        report(task.folder, task.labelled, tuning.seed, tuning.listen)
    spent = time.monotonic() - started
    return Result(out=task.folder.path, steps=steps, seconds=spent, verdict=verdict(result.facts))


def config(tuning: FineTuning) -> head_fit.Config:
    """The head's options; ValueError for unknown ones."""
    options = tuning.adapt_options if tuning.adapt == "head" else None
    plain = head_fit.Config(balance=tuning.balance)
    return requirements.with_options("adapt", "head", plain, options or {})


def refuse_training_options(tuning: FineTuning) -> None:
    """ValueError for options that say how to train, which a head does not do."""
    fields = {field.name: field.default for field in dataclasses.fields(tuning)}
    for name in TRAINED:
        if getattr(tuning, name) not in (fields[name], None, {}):
            raise ValueError(
                f"--{name.replace('_', '-')}: a head is fitted, not trained in steps: leave it out or choose "
                "another --adapt"
            )


def verdict(facts: Any) -> Verdict:
    """How good the classifier is on images that it was not fitted on."""
    if (held_out := facts.get("held_out")) is None:
        return Verdict(
            "warn",
            "not judged: no image can be held out",
            "`omma evaluate` judges it on other labelled images",
        )
    name = "map_macro" if facts["multi_label"] else "top1"
    value, (low, high) = held_out["metrics"][name]["value"], held_out["metrics"][name]["interval95"]
    what = "mean average precision" if facts["multi_label"] else "right"
    text = f"{what}: {value:.1%} ({100 * low:.1f} to {100 * high:.1f}; {held_out['protocol']})"
    beaten = [floor for floor in facts["floors"] if floor["value"] > high]
    remedy = "" if not beaten else f"{beaten[0]['name']} on {beaten[0]['features']} is better"
    return Verdict("warn" if beaten else "good", text, remedy)
