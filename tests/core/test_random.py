"""Known answers, independence from the batch, and the shape of the distributions."""

import numpy as np
import pytest

from omma.core import random
from omma.core.protocols import Key


def key(n=8, seed=3, epoch=2, first=0):
    return Key(seed, np.full(n, epoch), np.arange(first, first + n))


@pytest.mark.parametrize(
    ("counter", "philox_key", "answer"),
    [  # kat_vectors of Random123, "philox4x32 10"
        ([0] * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, philox_key, answer):
    words = random.philox(np.array(counter, np.uint32)[:, None], philox_key)
    assert " ".join(f"{int(w):08x}" for w in words[:, 0]) == answer


def test_numbers_depend_on_the_image_alone():
    whole = random.uniform(key(8), random.Stream.BOX, 7)
    some = np.array([5, 1])
    part = random.uniform(Key(3, np.array([2, 2]), some), random.Stream.BOX, 7)
    np.testing.assert_array_equal(whole[some], part)
    # asking for more numbers doesn't change the first ones
    np.testing.assert_array_equal(random.uniform(key(8), random.Stream.BOX, 30)[:, :7], whole)


def test_every_part_of_the_key_matters():
    base = random.uniform(key(), 1, 16)
    for other in (
        random.uniform(key(seed=4), 1, 16),
        random.uniform(key(seed=3 + (1 << 32)), 1, 16),
        random.uniform(key(epoch=3), 1, 16),
        random.uniform(key(first=8), 1, 16),
        random.uniform(key(first=1 << 32), 1, 16),
        random.uniform(key(), 2, 16),
    ):
        assert not np.intersect1d(base, other).size
    assert random.uniform(key(seed=-1), 1, 4).shape == (8, 4)


def test_distributions():
    u = random.uniform(key(2000), 1, 33)
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.1


def test_permutations_and_orders():
    p = random.permutations(key(50), random.Stream.MASK, 49)
    assert p.dtype == np.int64
    assert (np.sort(p, axis=1) == np.arange(49)).all()
    assert len(np.unique(p[:, 0])) > 20
    order = random.epoch_order(1, 0, 1000)
    assert (np.sort(order) == np.arange(1000)).all()
    np.testing.assert_array_equal(order, random.epoch_order(1, 0, 1000))
    assert (order != random.epoch_order(1, 1, 1000)).mean() > 0.9
    assert (order != random.epoch_order(2, 0, 1000)).mean() > 0.9


def test_derived_seeds_differ():
    numbers = [(0,), (0, 0), (1,), (1, 0), (0, 1), (0, 0, 1), (1 << 40, 1), (-1,)]
    seeds = [random.derive(*v) for v in numbers]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 1 << 63 for s in seeds)


def test_golden():
    """A run must resume with the numbers it began with, also after an upgrade (of version 0.1)."""
    got = random.bits(Key(7, np.array([1]), np.array([5])), 0x100, 4)[0].tolist()
    assert got == [948072850, 666018509, 2836580890, 3790154248]
    assert random.derive(7, 1, 2) == 6581914672068350508
    assert random.epoch_order(7, 1, 8).tolist() == [6, 5, 4, 7, 0, 1, 2, 3]


def test_limits():
    with pytest.raises(ValueError, match="stream"):
        random.bits(key(), 1 << 16, 4)
    with pytest.raises(ValueError, match="further streams"):
        random.bits(key(1), 0, (1 << 18) + 1)
