"""Splits are seeded, stratified, disjoint, and say in words what they did."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omma.data.sources.collection import ArrayImages
from omma.data.sources.split import stratified, train_test


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
