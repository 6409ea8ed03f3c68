"""Splits are seeded, stratified, disjoint, and say in words what they did."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omma.data.sources.collection import ArrayImages
from omma.data.sources.split import fraction, shots, stratified, train_test


@settings(deadline=None)  # a busy machine is no fault
@given(
    labels=st.lists(st.integers(-1, 5), max_size=60),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_every_class_on_both_sides(labels, share, seed):
    labels = np.array(labels, np.int64)
    train, test = stratified(labels, share, seed)
    together = np.sort(np.concatenate([train, test]))
    np.testing.assert_array_equal(together, np.flatnonzero(labels >= 0))
    for label in set(labels.tolist()) - {-1}:
        size, tested = (labels == label).sum(), (labels[test] == label).sum()
        assert (labels[train] == label).any()
        assert abs(tested - share * size) <= 1
        if size >= 2:
            assert tested


def test_seed_decides():
    labels = np.repeat(np.arange(10), 50)
    first, again, other = (stratified(labels, 0.2, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert np.bincount(labels[first]).tolist() == [10] * 10
    with pytest.raises(ValueError, match="test_share=1"):
        stratified(labels, 1)


def collection(labels, splits=None) -> ArrayImages:
    n = len(labels)
    columns = np.array(labels), ("ant", "bee"), None if splits is None else np.array(splits)
    return ArrayImages(np.zeros((n, 40, 40, 3), np.uint8), *columns, source="insects")


def test_own_split_is_honoured():
    splits = ["train", "test", "train", "test", "train"]
    train, test, how = train_test(collection([0, 0, 1, 1, -1], splits))
    assert (train.tolist(), test.tolist()) == ([0, 2], [1, 3])
    assert "own split" in how


@pytest.mark.parametrize("splits", [None, ["train"] * 20])
def test_otherwise_one_is_made_and_said(splits):
    train, test, how = train_test(collection([0, 1] * 10, splits), seed=3)
    assert (len(train), len(test)) == (16, 4)
    assert how == "stratified split, 20% test, seed 3: 16 train, 4 test"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (ArrayImages(np.zeros((4, 40, 40, 3), np.uint8)), "no labels; put images into one folder a class"),
        (collection([-1, -1]), "no labels"),
        (collection([1, 1, 1]), r"only one class \(bee\)"),
        (collection([0, 1]), "label at least two of each"),
    ],
)
def test_errors_tell_the_remedy(images, message):
    with pytest.raises(ValueError, match=message) as caught:
        train_test(images)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- a few of each class
LABELS = np.array([0] * 40 + [1] * 7 + [2] + [-1] * 5)[np.random.default_rng(0).permutation(53)]


@pytest.mark.parametrize("seed", [0, 1])
def test_shots_are_nested_and_of_each_class(seed):
    chosen = [shots(LABELS, k, seed) for k in (1, 2, 4, 8)]
    for k, rows in zip((1, 2, 4, 8), chosen):
        assert np.bincount(LABELS[rows]).tolist() == [k, min(k, 7), 1]
        assert (np.diff(rows) > 0).all()
    assert all(set(few) < set(more) for few, more in pairwise(chosen))


def test_shots_depend_on_seed_and_image_alone():
    assert shots(LABELS, 4, 0).tolist() != shots(LABELS, 4, 1).tolist()
    more = np.concatenate([LABELS, [-1] * 100])
    assert shots(more, 4, 0).tolist() == shots(LABELS, 4, 0).tolist()
    other = np.where(LABELS == 1, -1, LABELS)  # another class gone
    assert set(shots(other, 4, 0)) == {k for k in shots(LABELS, 4, 0) if LABELS[k] != 1}
    firsts = {shots(LABELS, 1, seed)[LABELS[shots(LABELS, 1, seed)] == 1][0] for seed in range(60)}
    assert len(firsts) == 7  # any image of a class may be its first


def test_fractions_are_nested_and_of_each_class():
    chosen = [fraction(LABELS, share, 3) for share in (0.01, 0.1, 0.5, 1)]
    counts = [np.bincount(LABELS[rows]).tolist() for rows in chosen]
    assert counts == [[1, 1, 1], [4, 1, 1], [20, 4, 1], [40, 7, 1]]
    assert all(set(few) < set(more) for few, more in pairwise(chosen))


def test_a_few_images_of_several_labels():
    sets = np.zeros((60, 3), np.int8)
    sets[:, 0], sets[:9, 1], sets[5:8, 2], sets[-1] = 1, 1, 1, -1
    chosen = [shots(sets, k, 0) for k in (1, 2, 4)]
    assert [(sets[rows] > 0).sum(0).clip(max=k).tolist() for k, rows in zip((1, 2, 4), chosen)] == [
        [1, 1, 1],
        [2, 2, 2],
        [4, 4, 3],
    ]
    assert set(chosen[0]) < set(chosen[1]) < set(chosen[2])
    assert len(fraction(sets, 0.5, 0)) == 25 + 3 + 2  # by the rarest class: 50, 6 and 3 images


@pytest.mark.parametrize("call", [lambda: shots(LABELS, 0, 0), lambda: fraction(LABELS, 0, 0)])
def test_too_few_shots(call):
    with pytest.raises(ValueError, match=r"(shots|fraction)=0: must be"):
        call()
