"""Schedules as pure functions of a run's progress."""

import math

from omma.core.protocols import Clock


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine; `progress` is clipped to [0, 1]."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(start: float, end: float, progress: float) -> float:
    """From `start` to `end` linearly; `progress` is clipped to [0, 1]."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def warmup_cosine(clock: Clock, peak: float, end: float, warmup: float) -> float:
    """Linear from 0 to `peak` over the first `warmup` share of the run, then cosine to `end`.

    The first step is never 0: step s of w warmup steps has (s + 1) / w of the peak.
    """
    steps = warmup * clock.total
    if clock.step < steps:
        return peak * min((clock.step + 1) / steps, 1.0)
    return cosine(peak, end, (clock.step - steps) / max(clock.total - steps, 1))
