"""Ending at a time: the number of steps is corrected as the speed becomes known."""

import re
import time
from dataclasses import dataclass, field

from omma.train.loop import Position

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str | float) -> float:
    """ "10m", "90s", "1.5h", "2d" or plain seconds. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"budget {text!r}: give a time such as 90s, 10m or 2h")
    return float(match[1]) * UNITS[match[2] or "s"]


@dataclass
class Timekeeper:
    """Keeps a run within `budget` seconds (None: no limit, nothing is changed), earlier sittings included."""

    budget: float | None
    before: float = 0.0  # seconds of earlier sittings
    reserve: float = 2.0  # seconds for what follows training
    started: float = field(default_factory=lambda: time.monotonic())  # of this sitting
    _mark: tuple[float, int] | None = None  # time and step from which speed is measured

    @property
    def elapsed(self) -> float:
        """Seconds spent in all sittings."""
        return self.before + time.monotonic() - self.started

    def correct(self, position: Position) -> None:
        """Set `position.total` so that the run ends in time; call after each step.

        Speed is that of the last fifth of the run or so, pauses for readings and checkpoints included.
        Corrections come about a hundred times a run, so the schedules stay smooth.
        """
        if self.budget is None:
            return
        left = self.budget - self.reserve - self.elapsed
        if left <= 0:
            position.total = position.step
            return
        now = time.monotonic()
        if self._mark is None:
            self._mark = now, position.step
            return
        since, step = self._mark
        done = position.step - step
        near_end = position.total - position.step < 5
        if not near_end and (done < 5 or done % max(1, position.total // 100)):
            return
        position.total = position.step + max(1, round(left / ((now - since) / done)))
        if now - since > 0.2 * self.budget:
            self._mark = since + (now - since) / 2, step + done // 2
