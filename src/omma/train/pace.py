"""How long the steps of a run take, where they change on the way."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Seconds a step, for each part of a run."""

    parts: tuple[tuple[float, float], ...] = ((1.0, 1.0),)  # (share of the run until which, seconds a step)

    def seconds(self, start: int, stop: int, total: int) -> float:
        """Of the steps from `start` to `stop` in a run of `total`."""
        return self._until(stop, total) - self._until(start, total)

    def total(self, step: int, seconds: float) -> int:
        """The length of a run that has made `step` steps and has `seconds` left; a step more, at least."""
        low, high = step + 1, step + max(1, math.floor(seconds / min(cost for _, cost in self.parts)))
        while low < high:  # the longest that fits
            middle = (low + high + 1) // 2
            if self.seconds(step, middle, middle) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def _until(self, step: int, total: int) -> float:
        sum_, before = 0.0, 0.0
        for until, cost in self.parts:
            sum_ += cost * max(0.0, min(step, until * total) - before * total)
            before = until
        return sum_
