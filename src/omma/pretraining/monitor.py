"""Watch a run on a fixed sample of images: health, online k-NN if there are labels, what is retained."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from omma.core.protocols import Clock, HealthSignal, Images, Preprocess
from omma.data.batches.preprocess import load_batch
from omma.evaluation import confidence, knn
from omma.ops.batch_norm import calibrated
from omma.pretraining import alignment, health, retention

HELD_OUT = 512  # images kept from training to read health on
ENOUGH = 2000  # images under which none is kept from training
BANK = 2000  # labelled training images that online k-NN compares with, at most
K = 20
VIEWED = 256  # images of the sample that views are made of, at most ...
PAIRS = 4  # ... and pairs of views of each
CHUNK = 128  # images that pass the network at once
SETTLED = 50  # steps until statistics of batch norms have forgotten 0 and 1, where they began
LARGEST = 2  # times the 5 % that the smallest group may have to be held out
ALIKE = 0.02  # deviation over the images, in the data's own: about one level of 255


def hold_out(
    rows: Int[np.ndarray, "n"], seed: int, groups: Int[np.ndarray, "n"] | None = None
) -> tuple[Int[np.ndarray, "a"], Int[np.ndarray, "b"]]:
    """(rows to train on, rows to read health on), both sorted.

    5 % and at most 512 images are held out. Of fewer than 2,000 images none is, and health is read on up to
    512 training images.
    groups: of the rows. Whole groups are held out, in random order, as long as they fit; if none does, the
    smallest one of at most 10 % of the images. If there is none of these either, nothing is held out.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(rows)
    nothing = np.sort(rows), np.sort(order[:HELD_OUT])
    if len(rows) < ENOUGH:
        return nothing
    most = min(HELD_OUT, len(rows) // 20)
    if groups is None:
        return np.sort(order[most:]), np.sort(order[:most])
    _, codes = np.unique(groups, return_inverse=True)
    sizes, number, taken = np.bincount(codes.reshape(-1)), 0, list[int]()
    for group in rng.permutation(len(sizes)).tolist():
        if number + sizes[group] <= most:
            taken.append(group)
            number += int(sizes[group])
    if not taken and sizes.min() <= LARGEST * len(rows) / 20:
        taken = [int(sizes.argmin())]
    chosen = np.isin(codes.reshape(-1), taken)
    return (np.sort(rows[~chosen]), np.sort(rows[chosen])) if taken else nothing


class HealthReport(NamedTuple):
    """One reading and its verdict."""

    reading: health.Reading
    verdict: health.Verdict
    knn: float | None  # online k-NN top-1
    retained: retention.Retention | None  # of the first weights, in a run that starts from weights


@dataclass
class Monitor:
    """Reads health on `sample`, and online k-NN that classifies the sample by labelled training images.

    The first reading is stored to compare later ones with: nearest neighbours, and how well two views of an
    image are matched among other images. If the sample consists of training images, each is classified by all
    others in it (leave one out; with groups, by those of other groups). If the run is `continued` from
    weights, what became of them is reported, too. Labels are read for k-NN only. Images are decoded once.
    """

    sample: Images
    training: Images
    preprocess: Preprocess
    seed: int
    held_out: bool  # are `sample` and `training` disjoint?
    blind: bool = True  # does training see no labels? If it does, k-NN on training images means nothing
    continued: bool = False
    groups: np.ndarray | None = None  # of the sample
    signals: Sequence[HealthSignal] = ()  # the method's
    readings: list[health.Reading] = field(default_factory=list)
    start: retention.Start | None = None

    def __post_init__(self) -> None:
        pixels, good, _ = load_batch(self.sample, np.arange(len(self.sample)), self.preprocess, reduced=True)
        self.pixels = pixels[torch.from_numpy(good)]
        self.alike = len(self.pixels) > 1 and float((self.pixels - self.pixels[:1]).abs().mean()) < ALIKE
        self.labels: np.ndarray | None = None
        self.labelled_groups: np.ndarray | None = None
        self.bank: Tensor | None = None
        labels, training_labels = self.sample.labels, self.training.labels
        if labels is None or training_labels is None or not (self.blind or self.held_out):
            return
        labels = labels[good]
        compared = training_labels if self.held_out else labels
        if len(np.unique(compared[compared >= 0])) < 2 or (labels < 0).all():
            return
        groups = None if self.groups is None else self.groups[good][labels >= 0]
        if not self.held_out and groups is not None and not _in_two_groups(labels[labels >= 0], groups):
            return
        self.labels, self.labelled_groups = labels, groups
        if self.held_out:
            rows = np.flatnonzero(training_labels >= 0)
            rows = np.sort(np.random.default_rng(self.seed).permutation(rows)[:BANK])
            bank, readable, _ = load_batch(self.training, rows, self.preprocess, reduced=True)
            self.bank = bank[torch.from_numpy(readable)]
            self.bank_labels = training_labels[rows][readable]

    def read(
        self,
        encoder: torch.nn.Module,
        clock: Clock,
        recent: Sequence[Mapping[str, float]],
    ) -> HealthReport:
        """Health now, k-NN and retention; recent: metrics of the steps since the last reading.

        At first, batch norms have the sample's statistics, so that what changes is what weights do.
        """
        if clock.step < SETTLED and not self.continued:
            device = next(encoder.parameters()).device
            with calibrated(encoder, (chunk.to(device) for chunk in self.pixels.split(CHUNK))):
                return self._read(encoder, clock, recent)
        return self._read(encoder, clock, recent)

    def _read(
        self, encoder: torch.nn.Module, clock: Clock, recent: Sequence[Mapping[str, float]]
    ) -> HealthReport:
        features = vectors(encoder, self.pixels)
        reading = self._reading(encoder, features, clock)
        correct = self._correct(encoder, features) if reading.finite else None
        retained = None
        if not self.readings and self.start is not None:
            self.start = dataclasses.replace(
                self.start, correct=correct if correct is None else correct.tolist()
            )
        elif reading.finite:
            retained = self._retained(reading, correct)
        if retained is not None and retained.change is not None and not self.blind:
            reading = dataclasses.replace(reading, knn_low=retained.change[0])
        self.readings.append(reading)
        means = {n: statistics.fmean(m[n] for m in recent) for n in (recent[-1] if recent else ())}
        verdict = health.judge(self.readings, means, self.signals, self.continued)
        retained = retained if self.continued else None
        if retained is not None:
            verdict = retention.judge(verdict, retained)
        return HealthReport(reading, verdict, None if correct is None else float(correct.mean()), retained)

    def _reading(self, encoder: torch.nn.Module, features: Tensor, clock: Clock) -> health.Reading:
        """Features now and, after the first reading, compared with it."""
        reading = health.read(features, clock.step, clock.progress)
        reading = dataclasses.replace(reading, epochs=clock.passes, images=len(features), alike=self.alike)
        if not reading.finite:
            return reading
        near, auc = retention.neighbours(features), self._view_auc(encoder)
        reading = dataclasses.replace(reading, view_auc=float(auc.mean()))
        if self.readings and self.start is not None:
            kept = retention.overlap(self.start.near, near)
            reading = dataclasses.replace(reading, neighbours_kept=kept)
            if self.start.view_auc is not None:
                low, high = alignment.change(auc, torch.tensor(self.start.view_auc))
                reading = dataclasses.replace(reading, view_auc_low=low, view_auc_high=high)
        elif not self.readings:
            self.start = retention.Start(near, None, auc.tolist())
        return reading

    def _view_auc(self, encoder: torch.nn.Module) -> Tensor:
        """`alignment.view_auc` of each image, as a mean over pairs of views: more of them of few images."""
        few = self.pixels[:VIEWED]
        pairs = min(PAIRS, max(1, 2 * VIEWED // max(len(few), 1)))
        views = [vectors(encoder, alignment.view(few, self.seed, number)) for number in range(2 * pairs)]
        auc = [alignment.view_auc(one, two) for one, two in zip(views[::2], views[1::2], strict=True)]
        return torch.stack(auc).mean(0)

    def _correct(self, encoder: torch.nn.Module, features: Tensor) -> np.ndarray | None:
        """For each labelled image of the sample, does k-NN classify it correctly? None without labels."""
        if self.labels is None:
            return None
        is_labelled = self.labels >= 0
        labels, labelled = self.labels[is_labelled], features.numpy()[is_labelled]
        if self.bank is None:
            return knn.predict(labelled, labels, None, k=K, groups=self.labelled_groups) == labels
        return knn.predict(vectors(encoder, self.bank).numpy(), self.bank_labels, labelled, k=K) == labels

    def _retained(self, reading: health.Reading, correct: np.ndarray | None) -> retention.Retention | None:
        """Compared with the first reading."""
        if self.start is None:
            return None
        if correct is None or self.start.correct is None:
            return retention.Retention(kept=reading.neighbours_kept)
        before = np.array(self.start.correct, bool)
        return retention.Retention(
            kept=reading.neighbours_kept,
            knn_start=float(before.mean()),
            knn=float(correct.mean()),
            change=confidence.paired(correct, before, self.seed, level=0.99, groups=self.labelled_groups),
        )

    def state(self) -> dict[str, Any]:
        """All readings so far, in plain values for a checkpoint."""
        start = None if self.start is None else dataclasses.asdict(self.start)
        return {"readings": [dataclasses.asdict(r) for r in self.readings], "start": start}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.readings = [health.Reading(**reading) for reading in state["readings"]]
        start = state.get("start")  # a checkpoint of omma 0.1 has none
        self.start = None if start is None else retention.Start(**start)


def _in_two_groups(labels: Int[np.ndarray, "n"], groups: Int[np.ndarray, "n"]) -> bool:
    """Does any class lie in two groups or more, so that images of other groups can tell it?"""
    return len(np.unique(np.stack([labels, groups]), axis=1).T) > len(np.unique(labels))


@torch.no_grad()  # not inference mode: sharded blocks must not keep what is made there
def vectors(encoder: torch.nn.Module, pixels: Tensor, batch: int = CHUNK) -> Tensor:
    """Pooled features [n, d] in fp32 of normalised images [n, c, s, s]; the encoder keeps its mode."""
    training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    features = [encoder(chunk.to(device)).pooled.float().cpu() for chunk in pixels.split(batch)]
    encoder.train(training)
    return torch.cat(features)
