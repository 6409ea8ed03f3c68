"""Balanced selection: shares in closed form, five rings, clusters without rows, kill and resume."""

import numpy as np
import pytest

from omma.curation import hierarchical
from omma.curation.hierarchical import (
    build,
    check_levels,
    default_levels,
    drawn,
    nearest_rows,
    shares,
    water_fill,
)
from omma.curation.kmeans import Clusters
from omma.curation.parts import Parts
from omma.features.vectors import ArrayVectors

RINGS = (20_000, 200, 1000, 500, 8000)


def rings(seed):
    """Five rings of one radius and width, apart, of very different numbers of points."""
    rng = np.random.default_rng(seed)
    centers = 4 * np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 2]])
    parts = []
    for n, center in zip(RINGS, centers):
        angle, radius = rng.uniform(0, 2 * np.pi, n), 1 + 0.1 * rng.normal(size=n)
        parts.append(center + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))
    return np.concatenate(parts).astype(np.float32), np.repeat(np.arange(5), RINGS)


def balanced(vectors, levels, size, seed=0, **options):
    hierarchy = build(vectors, levels, seed=seed, **options)
    rng = np.random.default_rng(seed)
    return drawn(hierarchy.levels[0], shares(hierarchy, size, rng), rng)


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


@pytest.mark.parametrize("seed", SEEDS)
def test_five_rings_are_within_a_quarter_of_equal_shares(seed):
    """[Vo 2024]'s example; a random sample of 1,000 has 673, 7, 34, 17 and 269 of them."""
    rows, ring = rings(seed)
    chosen = balanced(ArrayVectors(rows), (150, 40, 5), 1000, seed, rounds=(1, 2, 2), iterations=8)
    counts = np.bincount(ring[chosen], minlength=5)
    assert counts.sum() == len(np.unique(chosen)) == 1000
    assert (np.abs(counts - 200) <= 50).all(), counts


# ---------------------------------------------------------------- water filling
@pytest.mark.parametrize(
    ("sizes", "target", "taken"),
    [
        ((10, 10, 10), 9, (3, 3, 3)),
        ((1, 2, 100), 9, (1, 2, 6)),  # x = 6
        ((5, 5), 100, (5, 5)),  # all there is
        ((5, 0, 5), 4, (2, 0, 2)),
        ((3, 3), 0, (0, 0)),
        ((4, 4, 4), 5, (2, 2, 1)),  # the remainder goes to the first ones
        ((), 5, ()),
    ],
)
def test_water_filling_in_closed_form(sizes, target, taken):
    np.testing.assert_array_equal(water_fill(np.array(sizes, int), target), taken)


def test_what_is_held_counts():
    taken = water_fill(np.array([10, 10, 10]), 6, np.array([4, 1, 0]))
    np.testing.assert_array_equal(taken, [0, 3, 3])  # x = 3.5: the first of two gets the rest
    np.testing.assert_array_equal(water_fill(np.array([2, 10]), 6, np.array([9, 0])), [0, 6])


def test_water_filling_is_one_level_for_random_sizes():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes, held = rng.integers(0, 20, 7), rng.integers(0, 9, 7)
        target = int(rng.integers(0, sizes.sum() + 5))
        taken = water_fill(sizes, target, held, rng)
        assert taken.sum() == min(target, sizes.sum())
        assert (taken <= sizes).all()
        assert (taken >= 0).all()
        filled = held + taken
        if (open_ := taken < sizes).any() and (taken > 0).any():  # no vessel with room stands lower
            assert filled[open_].min() >= filled[taken > 0].max() - 1


def test_the_remainder_is_drawn():
    drawn_ = {tuple(water_fill(np.full(4, 9), 1, rng=np.random.default_rng(seed))) for seed in range(30)}
    assert len(drawn_) == 4


def clusters(assignment, k):
    assignment = np.array(assignment, np.int32)
    return Clusters(np.zeros((k, 1), np.float32), assignment, np.zeros(len(assignment), np.float32))


def test_shares_are_equal_at_every_level_from_the_top_down():
    fine = clusters([0] * 50 + [1] * 50 + [2] * 3 + [3] * 40, 4)
    hierarchy = hierarchical.Hierarchy((fine, clusters([0, 0, 1, 1], 2)))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(shares(hierarchy, 40, rng), [10, 10, 3, 17])
    held = np.array([0, 0, 0, 10])  # the second half has ten already
    np.testing.assert_array_equal(shares(hierarchy, 30, rng, held), [10, 10, 3, 7])
    np.testing.assert_array_equal(hierarchy.of_rows()[[0, 60, 101, 142]], [[0, 0], [1, 0], [2, 1], [3, 1]])


def test_drawn_rows_are_random_ones_of_their_clusters():
    own = clusters([0] * 5 + [1] * 5 + [2] * 5, 3)
    rows = drawn(own, np.array([2, 0, 5]), np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(rows // 5, minlength=3), [2, 0, 5])
    assert (np.diff(rows) > 0).all()
    assert len({tuple(drawn(own, np.array([2, 0, 0]), np.random.default_rng(s))) for s in range(20)}) > 3


def test_nearest_rows_of_each_cluster():
    own = Clusters(
        np.zeros((2, 1), np.float32),
        np.array([0, 1, 0, 1, 0], np.int32),
        np.array([3, 1, 1, 2, 2], np.float32),
    )
    np.testing.assert_array_equal(nearest_rows(own, 2), [2, 4, 1, 3])


# ---------------------------------------------------------------- levels
def test_default_levels():
    assert default_levels(1_000_000) == (10_000, 1000, 100, 10)
    assert default_levels(1000) == (100, 10)
    assert default_levels(3) == (1,)
    for n in (1, 7, 99, 5000, 123_456, 10_000_000):
        check_levels(default_levels(n), n)


@pytest.mark.parametrize("levels", [(), (10, 10), (5, 10), (101,), (10, 0)], ids=str)
def test_levels_that_do_not_descend_are_refused(levels):
    with pytest.raises(ValueError, match=r"^levels .*: give numbers of clusters that descend") as error:
        build(ArrayVectors(np.eye(100, dtype=np.float32)), levels)
    assert "\n" not in str(error.value)


def test_duplicates_leave_fewer_clusters_and_every_row_has_one():
    rows = np.repeat(np.random.default_rng(0).normal(size=(6, 3)), 50, axis=0).astype(np.float32)
    hierarchy = build(ArrayVectors(rows), (30, 3))
    assert [len(level.centroids) for level in hierarchy.levels] == [6, 3]
    assert all((level.sizes > 0).all() for level in hierarchy.levels)
    assert len(np.unique(hierarchy.of_rows()[::50, 0])) == 6


# ---------------------------------------------------------------- resume
@pytest.fixture(scope="module")
def pool():
    return ArrayVectors(np.random.default_rng(3).normal(size=(500, 6)).astype(np.float32))


def test_seeds_decide(pool):
    one, two, other = (balanced(pool, (50, 5), 100, seed, rounds=(1, 1)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("saves", [1, 4, 7, 9])
def test_a_killed_build_continues_to_the_same_list(pool, tmp_path, saves):
    options = {"rounds": (2, 2), "iterations": 4}
    whole = balanced(pool, (300, 10), 100, **options)
    killed = Parts(tmp_path)
    left = saves

    def save(name, **arrays):
        nonlocal left
        Parts.save(killed, name, **arrays)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    killed.save = save
    with pytest.raises(KeyboardInterrupt):
        balanced(pool, (300, 10), 100, parts=killed, **options)
    np.testing.assert_array_equal(balanced(pool, (300, 10), 100, parts=Parts(tmp_path), **options), whole)
    kept = {file.name for file in tmp_path.iterdir()}
    assert kept == {"level-1.npz", "level-2.npz"}


def test_what_is_done_is_not_done_again(pool, tmp_path, monkeypatch):
    whole = balanced(pool, (50, 5), 100, parts=Parts(tmp_path))
    monkeypatch.setattr(hierarchical, "_clustered", None)
    np.testing.assert_array_equal(balanced(pool, (50, 5), 100, parts=Parts(tmp_path)), whole)
