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
    per_epoch = clock.total / clock.epochs
    unit = per_epoch if s.by == "epoch" else 1.0  # steps between changes
    now = clock.step if s.by == "step" else math.floor(clock.epoch)
    now = max(now - s.late, 0)
    total, warmup = clock.total / unit, recipe.warmup_steps(clock) / unit
    if now < warmup:
        if s.ramp == "next":
            share = min((now + 1) / warmup, 1.0)
        else:
            share = now / max(warmup - (s.ramp == "closed"), 1)
        return s.start + (recipe.lr - s.start) * share
    if s.drops:
        return recipe.lr * 0.1 ** sum(now >= drop * total for drop in s.drops)
    start = 0.0 if s.whole else warmup
    return cosine(recipe.lr, recipe.lr_end, (now - start) / max(total - start, 1))
