"""Watching a run: health, and online k-NN where labels exist, on a fixed sample of images."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from omma.data.preprocess import load_batch
from omma.evaluate import knn
from omma.protocols import Backbone, Images, Preprocess
from omma.train import health

HELD_OUT = 512  # images kept from training to read health on
ENOUGH = 2000  # images under which none is kept from training
BANK = 2000  # labelled training images that online k-NN compares with
K = 20


def hold_out(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows to read health on), both sorted.

    5 % and at most 512 images are kept from training; from fewer than 2,000 images none is, and health is
    read on up to 512 training images.
    """
    order = np.random.default_rng(seed).permutation(rows)
    if len(rows) < ENOUGH:
        return np.sort(rows), np.sort(order[:HELD_OUT])
    held = min(HELD_OUT, len(rows) // 20)
    return np.sort(order[held:]), np.sort(order[:held])


@dataclass
class Monitor:
    """Reads health on `sample`; online k-NN finds its labels with those of training images.

    Labels are used for reading only. Images are decoded once.
    """

    sample: Images
    training: Images
    preprocess: Preprocess
    seed: int
    held_out: bool  # are `sample` and `training` disjoint? Online k-NN needs it
    readings: list[health.Reading] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pixels, good, _ = load_batch(self.sample, np.arange(len(self.sample)), self.preprocess)
        self.bank: Tensor | None = None
        labels, known = self.sample.labels, self.training.labels
        if not self.held_out or labels is None or known is None or len(np.unique(known)) < 2:
            return
        rows = np.flatnonzero(known >= 0)
        rows = np.sort(np.random.default_rng(self.seed).permutation(rows)[:BANK])
        self.bank, kept, _ = load_batch(self.training, rows, self.preprocess)
        self.bank_labels, self.labels = known[rows][kept], labels[good]

    def read(
        self,
        encoder: Backbone,
        step: int,
        progress: float,
        recent: Sequence[Mapping[str, float]],
    ) -> tuple[health.Reading, health.Verdict, float | None]:
        """Health after `step`, verdict, and online k-NN top-1; `recent`: metrics since the last reading."""
        features = vectors(encoder, self.pixels)
        reading = health.read(features, step, progress)
        self.readings.append(reading)
        means = {n: statistics.fmean(m[n] for m in recent) for n in (recent[-1] if recent else ())}
        verdict = health.judge(self.readings, means)
        if self.bank is None or not reading.finite:
            return reading, verdict, None
        known = self.labels >= 0
        predicted = knn.predict(
            vectors(encoder, self.bank).numpy(), self.bank_labels, features.numpy()[known], k=K
        )
        return reading, verdict, float((predicted == self.labels[known]).mean())

    def state(self) -> list[dict[str, float]]:
        """The readings so far, for a checkpoint."""
        return [dataclasses.asdict(r) for r in self.readings]


@torch.inference_mode()
def vectors(encoder: Backbone, pixels: Tensor, batch: int = 128) -> Tensor:
    """Pooled features [n, d] in fp32 of normalised images [n, c, s, s], the encoder left as it was."""
    training = encoder.training
    encoder.eval()
    place = next(encoder.parameters()).device
    parts = [encoder(part.to(place)).pooled.float().cpu() for part in pixels.split(batch)]
    encoder.train(training)
    return torch.cat(parts)
