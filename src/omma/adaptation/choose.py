"""`--adapt auto`: the simplest of several ways to fine-tune that is as good as the best on held-out images.

The head is always fitted, which takes seconds. Ways that train the encoder are tried if there are labels
enough to hold some out, and time. All are judged on the same held-out images, which none is fitted on; the
simplest stays whose accuracy is within one standard error of the best (docs/auto.md).
"""

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from omma import backbones, weights
from omma.adaptation import head, head_fit, head_run
from omma.adaptation.head_run import Report, Task
from omma.adaptation.request import DEFAULT_BUDGET, FineTuning
from omma.backbones import adapters
from omma.core.duration import seconds
from omma.core.errors import line
from omma.core.words import count
from omma.evaluation import confidence
from omma.features.extract import extract
from omma.pretraining import session
from omma.pretraining.events import Note, Result
from omma.pretraining.folder import CANDIDATES, RunFolder
from omma.weights import Model, answers
from omma.weights.classifier import Classifier

# Simplest first; labels a class, as a mean, from which each is tried. With 16 none was better than the head,
# with 100 LoRA and full fine-tuning were ahead (docs/finetune.md, "Which adapter").
TRIED = {"bias": 32, "lora": 32, "full": 32}
SHORTEST = 30.0  # seconds of training below which a way is not tried
MOST_ON_CPU = 30_000_000  # parameters of a network that is trained as a whole on a CPU


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way, judged."""

    name: str
    model: Model
    classifier: Classifier
    held_out: head_fit.HeldOut
    seconds: float
    settings: Mapping[str, Any]

    @cached_property
    def right(self) -> Float[np.ndarray, "h"]:
        """Of each held-out image: 1 if its answer is right; with several labels the share of right ones."""
        labels = self.held_out.labels
        p = self.classifier.probabilities(torch.from_numpy(self.held_out.logits)).numpy()
        if labels.ndim == 1:
            return (p.argmax(1) == labels).astype(np.float64)
        known = labels >= 0
        agree = (p >= np.asarray(self.classifier.calibration.thresholds or 0.5)) == (labels > 0)
        return (agree & known).sum(1) / known.sum(1)

    @property
    def value(self) -> float:
        """The accuracy."""
        return float(self.right.mean())

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        interval = confidence.mean(self.right, groups=confidence.several(self.held_out.groups))
        return {
            "name": self.name, "value": self.value, "interval95": list(interval), "images": len(self.right),
            "seconds": round(self.seconds, 1),
        }  # fmt: skip


def plan(tuning: FineTuning, task: Task) -> tuple[list[str], list[str]]:
    """The ways to try beside the head, and why others are not; by labels, network, machine and budget."""
    if not len(task.held_out):
        return [], ["only the head: too few labels to hold any out, so other ways cannot be judged"]
    labels, _ = head.labelled(task.images)
    known = labels[task.learned]
    sizes = np.bincount(known) if known.ndim == 1 else (known > 0).sum(0)
    shots = float(sizes[sizes > 0].mean())
    ways, notes = list[str](), list[str]()
    for way, least in TRIED.items():
        if why := _unfit(way, task, shots, least):
            notes.append(f"{way} is not tried: {why}")
        else:
            ways.append(way)
    budget = seconds(tuning.budget or DEFAULT_BUDGET)
    while ways and tuning.epochs is None and tuning.steps is None and budget / len(ways) < SHORTEST:
        notes.append(f"{ways.pop()} is not tried: the budget is too short for it")
    return ways, notes


def _unfit(way: str, task: Task, shots: float, least: int) -> str:
    if shots < least:
        return f"{shots:.3g} labels a class, fewer than {least}"
    size = sum(p.numel() for p in task.model.encoder.parameters())
    if way == "full" and task.device.type == "cpu" and size > MOST_ON_CPU:
        return f"{size / 1e6:.0f}M parameters take too long on a CPU"
    if way in adapters.kinds():
        try:
            adapters.insert(backbones.outline(**task.model.encoder.spec()), way)
        except ValueError as error:
            return line(error)
    return ""


def simplest(candidates: Sequence[Candidate]) -> Candidate:
    """The first that is within one standard error of the best [Breiman 1984, section 3.4.3].

    candidates: the simplest first, judged on the same images. The error is that of the difference to the
    best, image by image: images that are hard for both tell nothing. Where images have groups, it is that of
    their sums.
    """
    best = max(candidates, key=lambda candidate: candidate.value)
    for candidate in candidates:
        difference = best.right - candidate.right
        # one more disagreement is assumed: a single one does not tell two ways apart
        groups = best.held_out.groups
        own = (
            difference
            if groups is None
            else np.bincount(np.unique(groups, return_inverse=True)[1], difference)
        )
        error = np.sqrt(np.square(own).sum() + 1) / len(difference)
        if difference.mean() <= error:
            return candidate
    return best


def run(tuning: FineTuning, report: Report | None = None) -> Result:
    """Try, judge and keep one; the run folder is the result. ValueError for what the user can mend."""
    started = time.monotonic()
    task = head_run.read(tuning)
    ways, notes = plan(tuning, task)
    asked = {"kind": "auto", "balance": tuning.balance, "ways": ways, "holdout": tuning.holdout}
    asked = task.with_group(asked)
    configuration = head.run_configuration(
        task.model, task.labelled, str(tuning.model), asked, tuning.seed, task.precision
    )
    with head.claimed(task.folder, configuration):
        if not task.folder.finished:
            if tuning.track != "none" and not ways:
                notes.append(f"--track {tuning.track}: nothing is sent, since a head is not trained in steps")
            for note in notes:
                tuning.listen(Note(note))
            stopped = _try(tuning, task, ways, notes, configuration)
            if stopped is not None:
                return stopped
        result = head.read(task.folder)
        shutil.rmtree(task.folder.path / CANDIDATES, ignore_errors=True)
    for text in lines(result.facts):
        tuning.listen(Note(text))
    return head_run.finished(tuning, task, result, report, started)


def _try(
    tuning: FineTuning, task: Task, ways: list[str], notes: list[str], configuration: Mapping[str, Any]
) -> Result | None:
    """Judge all ways and write the folder of the one that is kept; the result of one stopped by a signal."""
    started = time.monotonic()
    candidates = [_head(tuning, task)] if ways else []
    for number, way in enumerate(ways):
        left = seconds(tuning.budget or DEFAULT_BUDGET) - (time.monotonic() - started)
        share = left / (len(ways) - number)
        found = _trained(tuning, task, way, max(share, SHORTEST))
        if isinstance(found, Result):
            return found
        candidates.append(found)
    final = simplest(candidates) if candidates else None
    tried = {"candidates": [candidate.facts() for candidate in candidates], "not_tried": notes}
    if final is None or final.name == "head":  # then held-out images are learned from, too
        head.write(
            task.folder, configuration, task.model, task.labelled, head_run.config(tuning), seed=tuning.seed,
            precision=task.precision, device=task.device, cache=task.cache, extra=tried, notes=task.notes,
            groups=task.groups_of(np.union1d(task.learned, task.held_out)), listen=tuning.listen,
        )  # fmt: skip
        return None
    facts = {
        "adapt": final.name,
        "images": len(task.labelled),
        "settings": final.settings,
        "floors": [],  # on the same held-out images there is the head
        "notes": [*task.notes, *task.held_out_notes],
        "seconds": round(time.monotonic() - started, 1),
        **tried,
        **head.judged(final.classifier, final.held_out, tuning.seed),
    }
    extras = final.classifier.extras()
    head.finish(task.folder, configuration, final.model, extras, facts, task.images.skipped)
    return None


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The candidates and the choice, for a person."""
    found = [
        f"{each['name']}: {each['value']:.1%} of {each['images']:,} held-out images, {each['seconds']:.0f} s"
        for each in facts["candidates"]
    ]
    why = "the simplest within one standard error of the best" if found else "nothing else was tried"
    return [*found, f"kept: {facts['adapt']} ({why})"]


# ---------------------------------------------------------------- candidates
def _head(tuning: FineTuning, task: Task) -> Candidate:
    """The head, fitted on the images to learn from alone."""
    started = time.monotonic()
    images, model = task.labelled, task.model
    rows = np.union1d(task.learned, task.held_out)
    features = extract(
        model.encoder, images, model.preprocess, task.device, task.precision, cache=task.cache,
        model_digest=model.digest,
    )  # fmt: skip
    labels = head.labelled(images)[0][features.indices]
    learned = np.isin(rows[features.indices], task.learned)
    fitted = head_fit.fit_features(
        features.vectors[learned],
        labels[learned],
        images.classes,
        config=head_run.config(tuning),
        seed=tuning.seed,
        device=head.solver_device(task.device),
        groups=task.groups_of(rows[features.indices][learned]),
    )
    logits = fitted.classifier.logits(torch.from_numpy(features.vectors[~learned])).numpy()
    return Candidate(
        name="head",
        model=model,
        classifier=fitted.classifier,
        held_out=head_fit.HeldOut(
            logits=logits,
            labels=labels[~learned],
            protocol=_protocol(task),
            groups=task.groups_of(rows[features.indices][~learned]),
        ),
        seconds=time.monotonic() - started,
        settings=fitted.settings,
    )


def _trained(tuning: FineTuning, task: Task, way: str, share: float) -> Candidate | Result:
    """A way that the engine trains, in a folder of its own, which goes on where it was stopped."""
    own = tuning.epochs is not None or tuning.steps is not None
    out = RunFolder(task.folder.path / CANDIDATES / way)
    before = out.config().get("end", {}).get("budget", share)  # a run that was stopped keeps its budget
    asked = dataclasses.replace(
        tuning,
        images=task.images,
        label_depth=None,
        adapt=way,
        adapt_options=None,
        out=out.path,
        budget=None if own else before,
    )
    result = session.run(asked.request())
    if result.stopped_by is not None:
        return result
    model = weights.load(result.out)
    assert model.classifier is not None, "the run has made one"
    images = task.images.subset(task.held_out)
    logits = answers.logits(model, images, task.device, task.precision)
    labels = head.labelled(images)[0][logits.indices]
    return Candidate(
        name=way,
        model=model,
        classifier=model.classifier,
        held_out=head_fit.HeldOut(
            logits=logits.vectors,
            labels=labels,
            protocol=_protocol(task),
            groups=task.groups_of(task.held_out[logits.indices]),
        ),
        seconds=result.seconds,
        settings={"steps": result.steps},
    )


def _protocol(task: Task) -> str:
    return f"held out, {count(len(task.held_out), 'labelled image')}"
