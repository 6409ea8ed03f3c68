"""Outliers: images far from their neighbours, beyond what is usual, not hidden by copies of themselves."""

import numpy as np
import pytest

from omma.curation import outliers


def crowd(n=200, d=16, seed=0):
    rng = np.random.default_rng(seed)
    return (np.eye(d)[0] + 0.2 * rng.normal(size=(n, d))).astype(np.float32)


def test_the_distance_is_the_mean_cosine_distance_to_the_nearest():
    # 20 orthogonal directions: all cosines are 0
    found = outliers.find(np.eye(20, dtype=np.float32))
    assert found.distance == pytest.approx(np.ones(20))
    assert not found.flagged.any()
    # on a circle in steps of 10 degrees, the two nearest lie at 10 degrees
    angles = np.radians(np.arange(0, 360, 10))
    ring = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    nearest = np.full(36, 1 - np.cos(np.radians(10)))
    assert outliers.find(ring, k=2).distance == pytest.approx(nearest, abs=1e-5)


def test_a_planted_outlier_is_found_and_a_plain_crowd_has_few():
    x = crowd()
    assert outliers.find(x).flagged.mean() <= 0.01
    x[17] = -np.eye(16, dtype=np.float32)[3]
    found = outliers.find(x)
    assert found.flagged[17]
    assert found.flagged.sum() <= 3
    assert found.distance[17] > found.limit >= np.sort(found.distance)[-10]


def test_copies_of_an_outlier_do_not_hide_it():
    x = crowd()
    x[20:35] = -np.eye(16, dtype=np.float32)[3]  # 15 copies of one odd image
    groups = np.arange(len(x))
    assert not outliers.find(x, groups).flagged[20:35].any()  # each has ten neighbours at no distance
    groups[20:35] = 20
    assert outliers.find(x, groups).flagged[20:35].all()


def test_the_length_of_vectors_says_nothing():
    x = crowd()
    scaled = x * np.random.default_rng(1).uniform(0.1, 9, (len(x), 1)).astype(np.float32)
    assert outliers.find(scaled).distance == pytest.approx(outliers.find(x).distance, abs=1e-5)


def test_too_few_images_are_refused_in_a_line():
    with pytest.raises(ValueError, match=r"19 different images are too few.*give 20"):
        outliers.find(crowd(40), np.minimum(np.arange(40), 18))
