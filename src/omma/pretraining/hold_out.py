"""Watch a classifier on labelled images that are held out: how good it is, and when it was best."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omma.core import dist
from omma.core.protocols import Clock, Extras, Images, Method, Preprocess
from omma.core.words import count
from omma.data.batches.preprocess import load_batch
from omma.data.sources import label_sets
from omma.evaluation import calibration, confidence, linear
from omma.evaluation.average_precision import mean_average_precision
from omma.methods.shared.classifies import Classifies
from omma.pretraining.events import Read
from omma.pretraining.health import Verdict
from omma.pretraining.watch import READINGS, Seen, ends_part
from omma.train.loop import Position

FEWEST = 4  # readings of a run shorter than as many epochs
CHUNK = 128  # images that pass the network at once
THREADS = 4  # that decode


@dataclass(frozen=True)
class Reading:
    """The held-out images at one moment."""

    step: int
    score: float  # top-1; with several labels an image, the mean over classes of the average precision
    nll: float  # negative log-likelihood, a mean over images; with several labels, over their classes too
    interval95: tuple[float, float] | None = None  # of top-1, where images have groups

    def better(self, other: "Reading | None") -> bool:
        """Is the score higher, or the same with a lower NLL?"""
        if other is None:
            return True
        return (self.score, -self.nll) > (other.score, -other.nll)


@dataclass
class HoldOut:
    """Reads a classifier at fixed steps, and lets the method keep its best weights.

    held_out False: `sample` is trained on; then nothing is read, and the last weights are the result.
    """

    sample: Images
    preprocess: Preprocess
    held_out: bool
    patience: int  # readings without improvement after which training may end; 0: it may not
    device: torch.device
    at_start: bool  # does the head know anything before the first step?
    groups: np.ndarray | None = None  # of the sample, which intervals draw as a whole
    readings: list[Reading] = field(default_factory=list)
    _pixels: Tensor | None = field(default=None, repr=False)

    def notes(self) -> list[str]:
        """Nothing that data has not said."""
        return []

    def begun(self) -> bool:
        """Or is there nothing to read, since the head knows nothing yet?"""
        return bool(self.readings) or not (self.held_out and self.at_start)

    def due(self, position: Position, cheap: bool) -> bool:
        """At steps that do not depend on how fast they are, so that a run can be repeated."""
        if not self.held_out:
            return position.step >= position.total
        epochs = round(position.clock().epochs)
        return ends_part(position, min(READINGS, max(FEWEST, epochs)))

    def read(self, method: Method, clock: Clock, recent: Sequence[Mapping[str, float]]) -> Seen:
        """Score and NLL now; the method keeps its weights if they are the best so far."""
        if not self.held_out:
            verdict = Verdict("warn", "not judged: no labelled image is held out", UNJUDGED)
            return self._seen(clock, verdict, {})
        assert isinstance(method, Classifies), "guaranteed by Needs.holds_out"
        with method.evaluated():
            reading = self._reading(method, clock)
            best = reading.better(self.best)
            if best:
                method.keep()
        self.readings.append(reading)
        values = {self.metric: reading.score, "nll": reading.nll, "images": len(self.labels), "best": best}
        return self._seen(clock, self._verdict(), values)

    def _reading(self, method: Classifies, clock: Clock) -> Reading:
        logits = self._logits(method)
        if not bool(torch.isfinite(logits).all()):
            reading = Reading(clock.step, 0.0, math.inf)
        elif self.several:
            reading = Reading(clock.step, *_several(logits, self.labels))
        else:
            truth = torch.from_numpy(self.labels)
            right = logits.argmax(-1) == truth
            values = float(right.float().mean()), float(F.cross_entropy(logits, truth))
            groups = None if self.groups is None else self.groups[self._good]
            interval = None if groups is None else confidence.bootstrap(right.numpy(), groups=groups)
            reading = Reading(clock.step, *values, interval)
        return dist.broadcast(reading)

    @torch.no_grad()
    def _logits(self, method: Classifies) -> Tensor:
        if self._pixels is None:
            everything = np.arange(len(self.sample))
            pixels, good, _ = load_batch(self.sample, everything, self.preprocess, THREADS, reduced=True)
            self._pixels, self._good = pixels[torch.from_numpy(good)], good
        chunks = self._pixels.split(CHUNK)
        return torch.cat([method.logits(chunk.to(self.device)).float().cpu() for chunk in chunks])

    @property
    def several(self) -> bool:
        """Have the images several labels each?"""
        return label_sets.of(self.sample) is not None

    @property
    def metric(self) -> str:
        """What the score is called."""
        return "map" if self.several else "top1"

    @property
    def labels(self) -> np.ndarray:
        """Of the images that can be read: one an image, or label sets [n, k]."""
        labels = label_sets.of(self.sample) if self.several else self.sample.labels
        assert labels is not None
        return labels[self._good]

    @property
    def best(self) -> Reading | None:
        """The best reading so far."""
        best = None
        for reading in self.readings:
            best = reading if reading.better(best) else best
        return best

    def _verdict(self) -> Verdict:
        best, now = self.best, self.readings[-1]
        assert best is not None
        if not math.isfinite(now.nll):
            remedy = "Lower the learning rate (--lr) or use --precision fp32"
            return Verdict("bad", "broken: outputs are not finite numbers", remedy)
        n = len(self.labels)
        images = f"of {count(n, 'held-out image')}"
        kept = "" if best is now else f" (the best: {best.score:.1%} at step {best.step:,})"
        if self.several:
            return Verdict("good", f"mean average precision {now.score:.1%} {images}{kept}")
        low, high = best.interval95 or confidence.bootstrap(np.arange(n) < round(best.score * n))
        majority = np.bincount(self.labels).max() / n
        text = f"{now.score:.1%} {images} are right{kept}; the best's interval is {low:.1%} to {high:.1%}"
        if low <= majority:
            text += f", and {majority:.1%} is what always answering the most frequent class gives"
            return Verdict("warn", text, "Train longer, or give more labels")
        return Verdict("good", text)

    def _seen(self, clock: Clock, verdict: Verdict, values: Mapping[str, Any]) -> Seen:
        line = {"event": "holdout", "step": clock.step, **values}
        line |= {"verdict": verdict.level, "state": verdict.state, "text": str(verdict)}
        return Seen(verdict, line, Read(step=clock.step, verdict=verdict, knn=None))

    def over(self) -> str:
        """Why training may end: nothing has become better for too long."""
        best = self.best
        if best is None or not self.patience:
            return ""
        since = len(self.readings) - 1 - self.readings.index(best)
        if since < self.patience:
            return ""
        return f"ends early: the best of {count(since + 1, 'reading')} was at step {best.step:,} (--patience)"

    def finish(self, method: Method) -> Extras:
        """The best weights, and their classifier, calibrated on the held-out images."""
        assert isinstance(method, Classifies), "guaranteed by Needs.holds_out"
        method.settle(best=self.best is not None)
        method.eval()
        classifier = method.classifier()
        if self.best is not None and math.isfinite(self.best.nll):
            logits = self._logits(method).numpy()
            classifier = calibration.calibrate(
                classifier, logits, linear.one_hot(self.labels, logits.shape[1])
            )
        return classifier.extras()

    def state(self) -> dict[str, Any]:
        """All readings so far; the best weights are in the method."""
        return {"holdout": [dataclasses.asdict(reading) for reading in self.readings]}

    def restore(self, state: Mapping[str, Any], changed: bool) -> None:
        """The inverse of `state`; of other images, nothing is the best so far."""
        self.readings = [] if changed else [Reading(**reading) for reading in state["holdout"]]


UNJUDGED = "`omma evaluate` judges it on other labelled images"


def _several(logits: Tensor, sets: np.ndarray) -> tuple[float, float]:
    """Mean average precision, and NLL of what is known."""
    truth = torch.from_numpy(sets.clip(0)).float()
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return mean_average_precision(logits.numpy(), sets), float(losses[torch.from_numpy(sets >= 0)].mean())
