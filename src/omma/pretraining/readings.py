"""Readings of a run's health, now and then: read, logged, reported."""

import dataclasses
import time
from collections.abc import Mapping

import torch

from omma.pretraining.events import Read
from omma.pretraining.health import Verdict
from omma.pretraining.metrics_log import MetricsLog
from omma.pretraining.run import Run
from omma.train import fsdp

SHARE = 0.05  # of a run's time that readings may take


class Readings:
    """Reads health when asked, and knows whether that is cheap by now."""

    def __init__(self, run: Run, log: MetricsLog) -> None:
        self.run, self.log = run, log
        self.recent: list[Mapping[str, float]] = []  # metrics of steps since the last reading
        self.verdict: Verdict | None = None
        self.last, self.cost = time.monotonic(), 0.0  # when health was read last, and how long that took

    def cheap(self) -> bool:
        """Is the last reading so long ago that another one takes no more than its share of the time?"""
        return time.monotonic() - self.last > self.cost / SHARE

    def read(self) -> Verdict:
        """Read health, log it and tell the listener."""
        run, began = self.run, time.monotonic()
        step = run.position.step
        seen = run.monitor.read(_encoder(run), run.position.clock(), self.recent)
        self.recent.clear()
        values = {k: v for k, v in dataclasses.asdict(seen.reading).items() if v is not None}
        line = {"event": "health", "step": step, **values}
        line |= {"verdict": seen.verdict.level, "state": seen.verdict.state, "text": str(seen.verdict)}
        line |= {} if seen.knn is None else {"online_knn_top1": seen.knn}
        line |= {} if seen.retained is None else seen.retained.metrics()
        self.log.write(line)
        run.listen(Read(step=step, verdict=seen.verdict, knn=seen.knn, retained=seen.retained))
        self.last = time.monotonic()
        self.cost = self.last - began
        return seen.verdict


def _encoder(run: Run) -> torch.nn.Module:
    """The exported encoder, or one that computes as its sharded blocks do."""
    encoder = run.method.export_encoder()
    if fsdp.sharded(encoder) and run.dtype != torch.float32:
        return fsdp.CastEncoder(encoder, run.dtype)
    return encoder
