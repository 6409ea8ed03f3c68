"""Gumbel noise belongs to its image, and the relaxed choice goes to a draw."""

import math

import numpy as np
import torch
from waves import wave

from omma.core.protocols import Key
from omma.methods.shared import gumbel


def key(index, seed=0, epoch=0):
    return Key(seed, np.full(len(index), epoch), np.asarray(index))


def test_an_images_noise_is_its_own():
    whole = gumbel.noise(key([3, 8, 5]), 7, (4, 6))
    assert torch.equal(gumbel.noise(key([5, 3]), 7, (4, 6)), whole[[2, 0]])
    for other in (key([3], seed=1), key([3], epoch=1)):
        assert not torch.equal(gumbel.noise(other, 7, (4, 6))[0], whole[0])
    assert not torch.equal(gumbel.noise(key([3]), 8, (4, 6))[0], whole[0])


def test_moments_of_the_gumbel_distribution():
    """Mean: Euler's constant. Variance: pi^2 / 6."""
    x = gumbel.noise(key(range(40)), 0, (50, 200))
    assert abs(float(x.mean()) - 0.57722) < 0.01
    assert abs(float(x.var()) - math.pi**2 / 6) < 0.02
    assert bool(torch.isfinite(x).all())


def test_cold_choices_are_draws_from_the_softmax():
    """[Maddison 2016, section 3.1]: argmax(l + g) is k with probability softmax(l)_k."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    noise = gumbel.noise(key(range(30)), 0, (1000, 4))
    y = gumbel.relaxed(logits.expand_as(noise), noise, 1e-3)
    assert float((y.max(-1).values > 0.999).float().mean()) > 0.99
    torch.testing.assert_close(y.mean((0, 1)), logits.softmax(0), atol=0.01, rtol=0)


def test_warm_choices_are_mixtures_that_sum_to_one():
    y = gumbel.relaxed(wave(2, 3, 4).float(), torch.zeros(2, 3, 4), 1e4)
    torch.testing.assert_close(y, torch.full_like(y, 0.25), atol=1e-3, rtol=0)
