"""How long a recipe's warm-up and epochs are, and what decays by its name."""

import pytest
import torch
from torch import nn

from omma.core.protocols import ParamGroup, Recipe, Schedule
from omma.train import param_groups
from omma.train.loop import Position
from omma.train.schedules import learning_rate


def recipe(**options):
    return Recipe(config=None, batch=4, lr=1.0, warmup=0.5, **options)


def test_warmup_of_so_many_steps_or_a_share_of_shorter_runs():
    fixed = recipe(warmup_length=20)
    assert fixed.warmup_steps(Position.of(fixed, 40, 0, 100).clock()) == 20
    assert fixed.warmup_steps(Position.of(fixed, 40, 0, 20).clock()) == 10
    assert learning_rate(Position.of(fixed, 40, 4, 100).clock(), fixed) == pytest.approx(5 / 20)


def test_epochs_of_a_third_of_a_pass():
    """With three views of each image in a step, 36 images make nine steps and three epochs of views."""
    thirds = recipe(
        epoch_passes=1 / 3, warmup_epochs=6, schedule=Schedule(ramp="open", by="epoch", late=True)
    )
    clocks = [Position.of(thirds, 36, step, 90).clock() for step in range(90)]
    assert clocks[3].epoch == pytest.approx(1)
    assert clocks[3].passes == pytest.approx(1 / 3)
    assert clocks[0].epochs == pytest.approx(30)
    assert thirds.warmup_steps(clocks[0]) == 18
    rates = [learning_rate(clock, thirds) for clock in clocks]
    expected = [0, 0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]
    assert rates[:24:3] == pytest.approx(expected)
    assert rates[1:24:3] == pytest.approx(expected)
    assert rates[2:24:3] == pytest.approx(expected)


def test_a_parameter_decays_by_its_name():
    network = nn.Module()
    network.dist_token, network.cls_token = (nn.Parameter(torch.zeros(1, 1, 4)) for _ in range(2))
    group = ParamGroup(label="encoder, no decay", params=list(network.parameters()), decay=False)
    decayed, rest = param_groups.with_decay([group], network, ("dist_token",))
    assert decayed.decay
    assert decayed.params[0] is network.dist_token
    assert len(decayed.params) == 1
    assert not rest.decay
    assert rest.params[0] is network.cls_token
    assert len(rest.params) == 1
