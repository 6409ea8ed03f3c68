"""Time budgets: trial steps that are timed and undone, and a step count corrected as speed becomes known."""

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
from omma.train.pace import Pace

LONG = 1_000_000_000  # steps of the run whose end a trial pretends to be
MOST = 8  # trial steps


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
    at: float = 1.0,
) -> float:
    """Seconds a step, measured over 2 to `most` steps that are undone; their batches are appended to `used`.

    They run as the last steps before the share `at` of a long run: nothing is frozen, and from the second
    step on AdamW's moments are in memory. The batches are kept in main memory. Process 0 decides the number
    of steps and the result. Whatever a step raises is passed on after everything is undone.
    """

    def recorded() -> Iterator[Batch]:
        for batch in batches:
            used.append(moved(batch, torch.device("cpu")))
            yield batch

    position = dataclasses.replace(position, step=round(at * LONG) - most, total=LONG)
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
    """Keeps a run within `budget` seconds, time before a restart included; None: no limit, no correction."""

    budget: float | None
    before: float = 0.0  # seconds spent before this process started
    reserve: float = 2.0  # seconds for what follows training
    pace: Pace = field(default_factory=Pace)  # how the steps' times compare
    started: float = field(default_factory=lambda: time.monotonic())
    # seconds spent, step and `_work` at which the speed measurement started
    _mark: tuple[float, int, float] | None = None
    _work: float = 0.0  # what the steps so far take at `pace`

    @property
    def elapsed(self) -> float:
        """Seconds spent so far, over all restarts."""
        return self.before + time.monotonic() - self.started

    def left(self, estimate: float) -> float:
        """Seconds until the end, if the steps to go take `estimate` seconds: the budget ends a run before."""
        return estimate if self.budget is None else max(0.0, min(estimate, self.budget - self.elapsed))

    def correct(self, position: Position, steady: bool = True, elapsed: float | None = None) -> None:
        """Set `position.total` so that the run ends in time; call after each step.

        elapsed: seconds spent, by another process' clock; with several processes one clock decides for all,
        so that their runs have the same length.
        steady: whether this step is as fast as the rest of the run will be. Steps that are not, such as those
        with a frozen encoder, are not measured.

        Speed is measured over about the last fifth of the run, including pauses for health and checkpoints.
        About a hundred corrections a run keep the schedules smooth.
        """
        if self.budget is None:
            return
        self._work += self.pace.seconds(position.step - 1, position.step, position.total)
        now = self.elapsed if elapsed is None else elapsed
        left = self.budget - self.reserve - now
        if left <= 0:
            position.total = position.step
            return
        if not steady:
            self._mark = None
            return
        if self._mark is None:
            self._mark = now, position.step, self._work
            return
        since, step, work = self._mark
        done = position.step - step
        near_end = position.total - position.step < 5
        if not near_end and (done < 5 or done % max(1, position.total // 100)):
            return
        slower = (now - since) / (self._work - work)
        position.total = self.pace.total(position.step, left / slower)
        if now - since > 0.2 * self.budget:
            self._mark = since + (now - since) / 2, step + done // 2, (work + self._work) / 2
