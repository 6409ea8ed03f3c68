"""Losses of two frames: closed forms, the equations written out, finite gradients."""

import math

import pytest
import torch
from waves import wave

from omma.losses import motion


def test_equivariance_is_the_equation():
    """[Jayaraman 2015, eq. 6], pair by pair and pattern by pattern in fp64."""
    first, second, maps = wave(5, 3), wave(5, 3, phase=1.0), wave(3, 3, 3, phase=2.0)
    pattern = torch.tensor([0, 1, 1, 0, 2])
    total, own, moved = 0.0, 0.0, 0.0
    for i in range(5):
        for g in range(3):
            d = float((maps[g] @ first[i] - second[i]).norm())
            total += d if g == pattern[i] else max(1.5 - d, 0.0) / 2
            own += d if g == pattern[i] else 0.0
        moved += float((first[i] - second[i]).norm())
    loss, error = motion.equivariance(first, second, maps, pattern, 1.5)
    assert float(loss) == pytest.approx(total / 5, rel=1e-5)
    assert float(error) == pytest.approx(own / moved, rel=1e-5)


def test_a_rotation_that_its_own_map_undoes_costs_only_the_margin():
    """M_0 = a quarter turn, M_1 = its inverse: the wrong map is 2 |z| away, beyond the margin."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    maps = torch.stack([turn, turn.T])
    loss, error = motion.equivariance(z, z @ turn.T, maps, torch.tensor([0, 0]), 1.0)
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert float(error) == pytest.approx(0, abs=1e-5)
    loss, _ = motion.equivariance(z, z @ turn.T, maps, torch.tensor([1, 1]), 1.0)
    assert float(loss) == pytest.approx(2 + 1)  # both wrong: the own one's distance, the other's margin


def test_features_that_shrink_to_nothing_pay_the_margin():
    z = torch.zeros(4, 3, requires_grad=True)
    loss, _ = motion.equivariance(z, z, torch.eye(3).repeat(3, 1, 1), torch.zeros(4, dtype=torch.long), 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0, abs=1e-4)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_maps_that_move_constant_features_by_the_margin_gain_nothing():
    """The sum over patterns would fall from 3 to 1 with four patterns, and nothing would be learned."""
    z, pattern = torch.ones(4, 3), torch.tensor([0, 1, 2, 3])
    still = torch.eye(3).repeat(4, 1, 1)
    moved = still * (1 + 1 / 3**0.5)
    for maps in (still, moved, (still + moved) / 2):
        assert float(motion.equivariance(z, z, maps, pattern, 1.0)[0]) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("power", [1, 2])
def test_slowness_is_the_equation(power):
    first, second = wave(4, 3), wave(4, 3, phase=0.3)
    sequence = torch.tensor([0, 1, 0, 2])
    total = 0.0
    for i in range(4):

        def d(j, i=i):
            difference = first[i] - second[j]
            return float(difference.abs().sum() if power == 1 else difference.norm())

        others = [max(3 - d(j), 0) ** power for j in range(4) if sequence[j] != sequence[i]]
        total += d(i) ** power + sum(others) / len(others)
    loss = motion.slowness(first, second, sequence, (second, sequence), 3.0, power)
    assert float(loss) == pytest.approx(total / 4, rel=1e-5)
    halves = [
        motion.slowness(first[r], second[r], sequence[r], (second, sequence), 3.0, power)
        for r in (slice(0, 2), slice(2, 4))
    ]
    assert math.isclose(float(sum(halves)) / 2, float(loss), rel_tol=1e-5)


def test_slowness_of_a_single_sequence_only_attracts():
    z, code = wave(3, 2), torch.zeros(3, dtype=torch.long)
    assert float(motion.slowness(z, z, code, (z, code), 9.0, 2)) == pytest.approx(0, abs=1e-5)
