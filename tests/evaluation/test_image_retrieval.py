"""Image retrieval: average precision as scikit-learn has it, ties, queries outside of their gallery."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from omma.evaluation import image_retrieval


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_average_precision_is_scikit_learns():
    rng = np.random.default_rng(0)
    vectors, groups = unit(rng.normal(size=(60, 4))), rng.integers(0, 9, 60)
    groups[0] = 9  # alone, no query
    found = image_retrieval.ranked(vectors, groups)
    assert 0 not in found.queries
    similarity = vectors @ vectors.T
    for row, first, precision, others in zip(*found[:4], strict=True):
        rest = np.arange(60) != row
        right = groups[rest] == groups[row]
        assert precision == pytest.approx(average_precision_score(right, similarity[row, rest]), abs=1e-6)
        assert first == np.argmax(right[np.argsort(-similarity[row, rest])])
        assert others == right.sum()
    assert found.gallery == 59


def test_images_that_belong_together_are_in_no_gallery_of_each_other():
    rng = np.random.default_rng(0)
    vectors, labels = unit(rng.normal(size=(40, 4))), rng.integers(0, 3, 40)
    apart = np.arange(40) // 4
    labels[:4], labels[5:] = 3, labels[5:] % 3  # the only others of class 3 are of the same sequence ...
    labels[4] = 3  # ... but for this one
    found = image_retrieval.ranked(vectors, labels, apart)
    for row, precision, others, gallery in zip(
        found.queries, found.precision, found.others, found.galleries, strict=True
    ):
        rest = apart != apart[row]
        right = labels[rest] == labels[row]
        expected = average_precision_score(right, (vectors @ vectors[row])[rest])
        assert precision == pytest.approx(expected, abs=1e-6)
        assert (others, gallery) == (right.sum(), 36)
    assert {0, 1, 2, 3, 4} <= set(found.queries.tolist())
    alone = image_retrieval.ranked(vectors[:4], labels[:4], apart[:4])
    assert not len(alone.queries)


def test_a_model_that_knows_nothing_retrieves_nothing():
    found = image_retrieval.ranked(np.ones((8, 1), np.float32), np.arange(8) % 2)
    figures = {name: figure for name, figure, _ in image_retrieval.figures(found, "category")}
    assert figures["recall@1, category"].value == 0
    assert figures["mAP, category"].value == pytest.approx(np.mean([1 / 5, 2 / 6, 3 / 7]))


def test_the_worked_case():
    """On a circle at 0, 10, 25 and 60 degrees, groups a b a a."""
    angles = np.deg2rad([0.0, 10.0, 25.0, 60.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    found = image_retrieval.ranked(vectors, np.array([0, 1, 0, 0]))
    assert found.queries.tolist() == [0, 2, 3]
    assert found.first.tolist() == [1, 1, 0]
    assert found.precision == pytest.approx([(1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, (1 + 2 / 3) / 2])
    figures = {name: (figure, chance) for name, figure, chance in image_retrieval.figures(found, "instance")}
    assert figures["recall@1, instance"][0].value == pytest.approx(1 / 3)
    assert figures["recall@1, instance"][1] == pytest.approx(2 / 3)
    assert figures["recall@5, instance"][0].value == 1.0
    value, (low, high) = figures["mAP, instance"][0]
    assert low < value < high
