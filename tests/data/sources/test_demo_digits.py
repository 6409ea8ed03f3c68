"""The demo's digits are reproducible and balanced, and not separable by raw pixels."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from omma.data.sources.demo_digits import make_digits


@pytest.fixture(scope="module")
def digits():
    return make_digits(2_000, 300)


def test_shapes_and_balance(digits):
    assert digits.train.shape == (2_000, 32, 32, 3)
    assert digits.test.shape == (300, 32, 32, 3)
    assert digits.train.dtype == np.uint8
    for labels in (digits.train_labels, digits.test_labels):
        share = np.bincount(labels, minlength=10) / len(labels)
        assert share.min() > 0.07
        assert share.max() < 0.13


def test_raw_pixels_do_badly(digits):
    def flat(images):
        rows = images.reshape(len(images), -1).astype(np.float32)
        rows -= rows.mean(1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    knn = KNeighborsClassifier(20).fit(flat(digits.train), digits.train_labels)
    assert knn.score(flat(digits.test), digits.test_labels) < 0.35


def test_seed_decides():
    first, again, other = (make_digits(50, 20, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train, again.train)
    np.testing.assert_array_equal(first.test, again.test)
    assert (first.train != other.train).any()


def test_other_sizes():
    assert make_digits(6, 4, size=48).test.shape == (4, 48, 48, 3)
    with pytest.raises(ValueError, match="size=8"):
        make_digits(1, 1, size=8)
