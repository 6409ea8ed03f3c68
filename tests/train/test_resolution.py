"""Views that are smaller early in a run, and a budget that reckons with it."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from omma.core.protocols import Batch, Clock, Key, ParamGroup, Recipe, StepOutput
from omma.core.stages import resolution_of
from omma.train import budget, resolution
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer
from omma.train.pace import Pace

STAGES = ((0.5, 0.5), (0.8, 0.75))


def batch_of(size, value=None):
    views = torch.rand(2, 3, 1, size, size) if value is None else torch.full((2, 3, 1, size, size), value)
    return Batch((views, views[:, :1, :, : size // 2, : size // 2]), Key(0, np.zeros(2), np.arange(2)))


def test_sides_are_whole_patches():
    assert [resolution.side(48, scale, 8) for scale in (0.1, 0.5, 0.7, 1.0)] == [16, 24, 32, 48]
    assert resolution.side(50, 1.0, 8) == 48
    assert resolution.side(10, 0.5, 8) == 10  # two patches would be more than the view


def test_views_are_reduced_and_keep_their_means():
    batch = batch_of(32)
    small = resolution.scaled(batch, 0.5, 4)
    assert [views.shape for views in small.views] == [(2, 3, 1, 16, 16), (2, 1, 1, 8, 8)]
    expected = nn.functional.interpolate(
        batch.views[0].flatten(0, 1), scale_factor=0.5, mode="bilinear", antialias=True
    )
    torch.testing.assert_close(small.views[0].flatten(0, 1), expected)
    flat = resolution.scaled(batch_of(32, 0.25), 0.5, 4).views[0]
    torch.testing.assert_close(flat, torch.full_like(flat, 0.25))
    assert small.key is batch.key


class Sizes(nn.Module):
    """A method that records the sizes of its views."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(1, 1)
        self.encoder.patch = 4  # type: ignore[assignment]
        self.seen = []

    def forward(self, batch, clock):
        self.seen.append(batch.views[0].shape[-1])
        return StepOutput(self.encoder(batch.views[0].mean().view(1, 1)).sum(), {})

    def after_step(self, clock, carries):
        pass

    def groups(self):
        yield ParamGroup(label="all", params=list(self.parameters()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_clock_decides_the_size(accumulate):
    """So a run that is resumed at any step has the sizes of one that was not."""

    def sizes(first, last):
        method = Sizes()
        recipe = Recipe(config=None, batch=2, lr=0.1, resolution=STAGES)
        position = Position(first, 10, 2, 20)
        batches = iter(lambda: batch_of(32), None)
        optimizer = make_optimizer(method, recipe)  # type: ignore[arg-type]
        steps = train(method, optimizer, batches, recipe, position, accumulate=accumulate)  # type: ignore[arg-type]
        list(itertools.islice(steps, last - first))
        return method.seen[::accumulate]

    whole = sizes(0, 10)
    assert whole == [16] * 5 + [24] * 3 + [32] * 2
    assert sizes(0, 4) + sizes(4, 10) == whole


@pytest.mark.parametrize(
    ("text", "stages"), [(".5@.5,.75@.8", STAGES), ("1@0.25", ((0.25, 1.0),)), ("full", ())]
)
def test_the_option_is_read(text, stages):
    assert resolution_of(text) == stages


@pytest.mark.parametrize(
    "text", ["", "half", ".5", ".5@1", ".5@0", "2@.5", "0@.5", ".5@.5,.75@.4", ".5@nan", "nan@.5"]
)
def test_other_options_are_refused_in_a_line(text):
    with pytest.raises(ValueError, match="give SCALE@SHARE") as error:
        resolution_of(text)
    assert "\n" not in str(error.value)


def test_a_configuration_without_it_is_as_before():
    recipe = Recipe(config=None, batch=2, lr=0.1)
    assert "resolution" not in recipe.settings()
    assert dataclasses.replace(recipe, resolution=STAGES).settings()["resolution"] == STAGES
    assert [recipe.scale(Clock(step, 10, 0)) for step in (0, 10)] == [1.0, 1.0]


# ---------------------------------------------------------------- time
PACE = Pace(((0.5, 1.0), (0.8, 2.0), (1.0, 4.0)))


def test_a_run_takes_the_sum_of_its_steps():
    assert PACE.seconds(0, 100, 100) == pytest.approx(50 * 1 + 30 * 2 + 20 * 4)
    assert PACE.seconds(60, 90, 100) == pytest.approx(20 * 2 + 10 * 4)
    assert PACE.seconds(30, 30, 100) == 0


@pytest.mark.parametrize("pace", [PACE, Pace(), Pace(((0.5, 4.0), (1.0, 1.0)))])
@pytest.mark.parametrize("step", [0, 7, 400])
@pytest.mark.parametrize("seconds", [0.5, 100.0, 3000.0])
def test_as_many_steps_as_fit(pace, step, seconds):
    total = pace.total(step, seconds)
    assert total > step
    assert pace.seconds(step, total, total) <= seconds or total == step + 1
    assert pace.seconds(step, total + 1, total + 1) > seconds


@pytest.mark.parametrize("guess", [20, 2000])
def test_a_run_whose_steps_grow_dearer_ends_in_time(monkeypatch, guess):
    """The budget knows how the steps compare, not how long they take on a machine that is busy by now."""
    now = [1000.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    keeper = budget.Timekeeper(100.0, reserve=2.0, pace=PACE)
    position, totals = Position(0, guess, 10, 100), []
    while position.step < position.total:
        now[0] += 0.05 * PACE.seconds(position.step, position.step + 1, position.total)
        position.step += 1
        keeper.correct(position)
        totals.append(position.total)
    assert 95 <= keeper.elapsed <= 100
    assert max(totals[len(totals) // 10 :]) < 1.02 * min(totals[len(totals) // 10 :])  # no schedule jumps
