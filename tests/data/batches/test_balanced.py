"""Each class is drawn equally often, whatever the epoch at which a run resumes."""

import numpy as np
import pytest

from omma.core.protocols import Crop, Key
from omma.core.random import Stream, uniform
from omma.data.batches import loader, order
from omma.data.batches.balanced import balanced_order, members
from omma.data.sources.collection import ArrayImages

LABELS = np.array([0] * 20 + [1] * 3 + [2] + [-1] * 2)


def drawn(epochs, labels=LABELS, n=23):
    return np.concatenate([balanced_order(7, epoch, members(labels), n) for epoch in range(epochs)])


def test_classes_are_drawn_equally_often():
    images = drawn(30)
    counts = np.bincount(LABELS[images], minlength=3)
    assert counts.tolist() == [230, 230, 230]
    assert np.ptp(np.bincount(images, minlength=26)[:20]) == 1  # within a class too: 11 or 12 times each
    assert np.ptp(np.bincount(LABELS[drawn(1)], minlength=3)) <= 1


def test_an_epoch_is_a_pure_function():
    third = balanced_order(7, 2, members(LABELS), 23)
    assert third.tolist() == drawn(3)[-23:].tolist()
    assert third.tolist() != balanced_order(8, 2, members(LABELS), 23).tolist()


def test_label_sets():
    sets = np.array([[1, 1], [1, 0], [1, 0], [0, 0], [-1, -1]])
    assert [group.tolist() for group in members(sets)] == [[0, 1, 2], [0], [3]]
    with pytest.raises(ValueError, match="no classes to balance"):
        members(np.array([-1, -1]))


def test_keys_resume_and_divide_among_processes():
    whole = [next(order.keys(26, 8, 7, s, balance=LABELS)) for s in range(6)]
    straight = [key for key, _ in zip(order.keys(26, 8, 7, balance=LABELS), range(6))]
    assert [k.index.tolist() for k in whole] == [k.index.tolist() for k in straight]
    assert [k.epoch.tolist() for k in whole] == [k.epoch.tolist() for k in straight]
    halves = [next(order.keys(26, 8, 7, 3, rank, 2, balance=LABELS)) for rank in range(2)]
    assert np.concatenate([half.index for half in halves]).tolist() == whole[3].index.tolist()
    assert (LABELS[np.concatenate([key.index for key in whole])] >= 0).all()
    with pytest.raises(ValueError, match="shards are read in their own order"):
        next(order.keys(26, 8, 7, blocks=np.zeros(26, np.int64), balance=LABELS))


def test_views_of_an_image_drawn_twice_differ():
    keys = [key for key, _ in zip(order.keys(26, 13, 7, balance=LABELS), range(20))]
    numbers = np.concatenate([uniform(Key(7, key.epoch, key.index), Stream.BOX, 1)[:, 0] for key in keys])
    assert len(np.unique(numbers)) == len(numbers)


def test_a_stream_is_balanced():
    pixels = np.zeros((26, 8, 8, 3), np.uint8) + np.arange(26, dtype=np.uint8)[:, None, None, None]
    with loader.stream(ArrayImages(pixels), (Crop(size=8),), 26, 0, balance=LABELS) as steps:
        read = next(steps).read
    assert sorted(np.bincount(LABELS[read])) == [8, 9, 9]
