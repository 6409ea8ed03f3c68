"""Schedules as pure functions of a run's progress."""

import math

from omma.core.protocols import Clock, Recipe


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine; `progress` is clipped to [0, 1]."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(start: float, end: float, progress: float) -> float:
    """From `start` to `end` linearly; `progress` is clipped to [0, 1]."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def learning_rate(clock: Clock, recipe: Recipe) -> float:
    """The unscaled rate of this step, as `Recipe.schedule` says."""
    s = recipe.schedule
    now, total, warmup = clock.step, clock.total, recipe.warmup_steps(clock)
    stated = recipe.stated_warmup(clock)
    if s.by == "epoch" and clock.epochs > (stated or 0):
        now, total, warmup = math.floor(clock.epoch), clock.epochs, warmup * clock.epochs / clock.total
        if stated is not None:
            warmup = clock.warmup(stated, recipe.warmup)  # not rounded to steps
    now = max(now - s.late, 0)
    if now < math.floor(warmup):
        done = {"next": (now + 1) / warmup, "closed": now / max(warmup - 1, 1), "open": now / warmup}
        return s.start + (recipe.lr - s.start) * min(done[s.ramp], 1.0)
    if s.drops:
        return recipe.lr * 0.1 ** sum(now >= drop * total for drop in s.drops)
    start = 0.0 if s.whole else warmup
    return cosine(recipe.lr, recipe.lr_end, (now - start) / max(total - start, 1))
