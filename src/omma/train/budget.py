"""Ending at a time: steps are timed and undone, and their number is corrected as the speed becomes known."""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from omma.core import dist
from omma.core.protocols import Batch, Method, Recipe
from omma.train import fsdp
from omma.train.loop import Position, moved, train

LONG = 1_000_000_000  # steps, of a run that a trial is the end of
MOST = 8  # steps of a trial


def trial(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    recipe: Recipe,
    position: Position,
    *,
    dtype: torch.dtype,
    accumulate: int,
    used: list[Batch],
    most: int = MOST,
) -> float:
    """Seconds a step, from 2 to `most` steps of which nothing remains; used: is given their batches.

    They are the last steps of a long run: nothing is frozen any more, and from the second on AdamW's moments
    take their memory. The batches wait in main memory. How many steps there are, and what is found, is
    process 0's to say. Raises whatever a step raises, with everything as it was before, too.
    """

    def recorded() -> Iterator[Batch]:
        for batch in batches:
            used.append(moved(batch, torch.device("cpu")))
            yield batch

    position = dataclasses.replace(position, step=LONG - most, total=LONG)
    times: list[float] = []
    with fsdp.unchanged(method, optimizer):
        steps = train(method, optimizer, recorded(), recipe, position, dtype=dtype, accumulate=accumulate)
        before = time.monotonic()
        for _ in steps:
            now = time.monotonic()
            times.append(now - before)
            before = now
            if dist.broadcast(len(times) >= 2 and sum(times) > 4):
                break
    return dist.broadcast(statistics.median(times[1:]))


@dataclass
class Timekeeper:
    """Keeps a run within `budget` seconds (None: no limit, nothing is changed), earlier sittings included."""

    budget: float | None
    before: float = 0.0  # seconds of earlier sittings
    reserve: float = 2.0  # seconds for what follows training
    started: float = field(default_factory=lambda: time.monotonic())  # of this sitting
    _mark: tuple[float, int] | None = None  # seconds spent and step from which speed is measured

    @property
    def elapsed(self) -> float:
        """Seconds spent in all sittings."""
        return self.before + time.monotonic() - self.started

    def correct(self, position: Position, steady: bool = True, elapsed: float | None = None) -> None:
        """Set `position.total` so that the run ends in time; call after each step.

        elapsed: seconds spent in all sittings by the clock that counts, where that is not this process' own.
        Of several processes one's clock counts for all, so that their runs are equally long.
        `steady`: is this step's speed that of the rest of the run? Others, as those with a frozen encoder,
        are not measured.

        Speed is that of the last fifth of the run or so, pauses for readings and checkpoints included.
        Corrections come about a hundred times a run, so the schedules stay smooth.
        """
        if self.budget is None:
            return
        now = self.elapsed if elapsed is None else elapsed
        left = self.budget - self.reserve - now
        if left <= 0:
            position.total = position.step
            return
        if not steady:
            self._mark = None
            return
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
