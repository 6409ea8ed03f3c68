"""Readings of a run, now and then: read, logged, reported."""

import time
from collections.abc import Mapping

from omma.pretraining.health import Verdict
from omma.pretraining.metrics_log import MetricsLog
from omma.pretraining.run import Run

SHARE = 0.05  # of a run's time that readings may take


class Readings:
    """Reads when asked, and knows whether that is cheap by now."""

    def __init__(self, run: Run, log: MetricsLog) -> None:
        self.run, self.log = run, log
        self.recent: list[Mapping[str, float]] = []  # metrics of steps since the last reading
        self.verdict: Verdict | None = None
        self.last, self.cost = time.monotonic(), 0.0  # when the last reading was, and how long it took

    def cheap(self) -> bool:
        """Is the last reading so long ago that another one takes no more than its share of the time?"""
        return time.monotonic() - self.last > self.cost / SHARE

    def read(self) -> Verdict:
        """Read, log it and tell the listener."""
        run, began = self.run, time.monotonic()
        seen = run.watcher.read(run.method, run.position.clock(), self.recent)
        self.recent.clear()
        self.log.write(seen.line)
        run.listen(seen.event)
        self.last = time.monotonic()
        self.cost = self.last - began
        return seen.verdict
