"""Budgets: ending in time whatever the speed."""

import pytest

from omma.train import budget
from omma.train.loop import Position


@pytest.mark.parametrize("guess", [5, 100, 10_000])
@pytest.mark.parametrize("before", [0.0, 40.0])
def test_a_run_ends_in_time_even_if_the_first_guess_was_wrong(monkeypatch, guess, before):
    now = [1000.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    keeper = budget.Timekeeper(100.0, before=before, reserve=2.0)
    position = Position(0, guess, 10, 100)
    while position.step < position.total:
        now[0] += 0.05 if now[0] < 1030 else 0.2  # the machine slows down half way
        position.step += 1
        keeper.correct(position)
        assert position.total >= position.step
    assert 95 <= keeper.elapsed <= 100


def test_another_process_clock_counts(monkeypatch):
    """Processes whose own clocks differ end after the same step."""
    own = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: own[0])
    ends = []
    for speed in (1.0, 3.0):  # of this process' own clock
        keeper, position, spent = budget.Timekeeper(50.0), Position(0, 1000, 10, 100), 0.0
        while position.step < position.total:
            own[0] += speed
            spent += 0.4
            position.step += 1
            keeper.correct(position, elapsed=spent)
        ends.append(position.step)
    assert ends[0] == ends[1]
    assert ends[0] in (120, 121)  # 48 seconds, summed in steps of .4


def test_time_left_is_never_more_than_the_budget_leaves(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    keeper = budget.Timekeeper(100.0, before=10.0)
    now[0] = 30.0
    assert (keeper.left(20.0), keeper.left(500.0)) == (20.0, 60.0)
    now[0] = 95.0
    assert keeper.left(20.0) == 0.0
    assert budget.Timekeeper(None).left(500.0) == 500.0
