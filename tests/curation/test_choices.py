"""Core-set, typicality, uncertainty, retrieval and near-copies, on cases that can be worked out by hand."""

import numpy as np
import pytest

from omma.curation.coreset import k_center
from omma.curation.kmeans import Clusters
from omma.curation.repeats import calibrated, without_repeats
from omma.curation.retrieval import nearest_of, retrieve, similar
from omma.curation.strategies import Seed, Task, choose
from omma.curation.typicality import typicality, typiclust
from omma.curation.uncertainty import entropy, margin
from omma.features.vectors import ArrayVectors
from omma.ops.nearest import nearest, unit


def directions(degrees):
    angle = np.deg2rad(np.asarray(degrees, float))
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


class Small(ArrayVectors):
    def blocks(self, rows=0):
        yield from super().blocks(7)


# ---------------------------------------------------------------- core-set
def test_k_center_on_a_line():
    rows = np.array([0, 1, 2, 3, 10], np.float32)[:, None]
    found = k_center(rows, 3)
    np.testing.assert_array_equal(found.rows, [3, 4, 0])  # nearest to the mean 3.2, then the farthest
    np.testing.assert_allclose(found.distance, [np.inf, 7, 3])
    np.testing.assert_array_equal(found.nearest, [2, 2, 0, 0, 1])
    assert found.radius == pytest.approx(1)


def test_k_center_complements_what_is_covered_and_ends_at_duplicates():
    rows = np.array([0, 0, 5, 10, 10], np.float32)[:, None]
    found = k_center(rows, 4, covered=np.array([[0.0]], np.float32))
    np.testing.assert_array_equal(found.rows, [3, 2])  # the rest equal chosen or covered ones
    assert found.radius == 0
    np.testing.assert_array_equal(found.nearest, [-1, -1, 1, 0, 0])


def test_k_center_is_within_twice_the_best_radius():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(10, 4)) * 30
    rows = (centers[:, None] + rng.uniform(-1, 1, (10, 30, 4))).reshape(-1, 4).astype(np.float32)
    assert k_center(rows, 10).radius <= 2 * 2  # each box has radius 2 around its center
    assert len(set(k_center(rows, 10).rows // 30)) == 10


# ---------------------------------------------------------------- typicality
def test_typicality_is_the_inverse_of_the_mean_distance():
    rows = directions([0, 60, 120])  # chords: 1 and sqrt 3
    np.testing.assert_allclose(typicality(rows), [2 / (1 + 3**0.5), 1, 2 / (1 + 3**0.5)], rtol=1e-5)
    assert typicality(rows[:1]).tolist() == [0]
    assert np.isinf(typicality(np.eye(3, dtype=np.float32)[[0, 0, 0]])).all()


def test_the_most_typical_of_the_largest_clusters_without_labels():
    groups = [0 + np.linspace(-20, 20, 9), 120 + np.linspace(-20, 20, 30), 240 + np.linspace(-20, 20, 20)]
    rows = directions(np.concatenate(groups))
    first = typiclust(rows, 1, np.zeros(0, int))
    assert len(first.rows) == 1
    found = typiclust(rows, 3, np.zeros(0, int))
    np.testing.assert_array_equal(found.sizes, [30, 20, 9])
    middle = {4, 9 + 14, 9 + 15, 39 + 9, 39 + 10}
    assert set(found.rows.tolist()) <= middle
    labelled = typiclust(rows, 2, np.array([10]))  # the large one has a label
    np.testing.assert_array_equal(labelled.sizes, [20, 9])


def test_clusters_run_empty_and_labelled_rows_are_never_chosen():
    rows = directions(np.arange(10))
    found = typiclust(rows, 20, np.array([0, 1]))
    assert sorted(found.rows) == list(range(2, 10))


# ---------------------------------------------------------------- uncertainty
def test_margin_and_entropy():
    p = np.array([[1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3, [0.6, 0.3, 0.1]])
    np.testing.assert_allclose(margin(p), [0, 1, 1, 0.7], atol=1e-12)
    np.testing.assert_allclose(entropy(p)[:3], [0, np.log(2), np.log(3)], atol=1e-12)
    np.testing.assert_allclose(margin(np.array([[0.5], [0.9]])), [1, 0.2])


# ---------------------------------------------------------------- retrieval
def test_neighbours_in_blocks_are_those_of_one_product():
    rng = np.random.default_rng(0)
    rows, queries = unit(rng.normal(size=(100, 5))), unit(rng.normal(size=(6, 5)))
    found, whole = nearest_of(queries, Small(rows), 12), nearest(queries, rows, 12)
    np.testing.assert_array_equal(found.indices, whole.indices)
    np.testing.assert_allclose(found.similarities, whole.similarities, atol=1e-6)
    assert nearest_of(queries, Small(rows), 1000).indices.shape == (6, 100)
    equal = Small(np.tile(np.eye(2, dtype=np.float32), (20, 1)))
    ties = nearest_of(np.eye(2)[:1], equal, 4).indices
    np.testing.assert_array_equal(ties, [[0, 2, 4, 6]])  # the lower rows


def test_each_seed_image_has_an_equal_share():
    rows = directions(np.concatenate([np.arange(50), 90 + np.arange(50)]))
    found = retrieve(directions([20.1, 110.1]), Small(rows), 6, np.random.default_rng(0))
    assert sorted(found.rows) == [19, 20, 21, 69, 70, 71]
    np.testing.assert_array_equal(found.query, [0, 1] * 3)
    np.testing.assert_array_equal(found.rows[:2], [20, 70])  # the nearest come first
    np.testing.assert_allclose(found.similarity[:2], np.cos(np.deg2rad(0.1)), atol=1e-6)


def test_clusters_of_the_seed_set_give_the_rest_and_no_more():
    rows = directions(np.concatenate([np.arange(30), 180 + np.arange(30)]))
    own = Clusters(directions([15, 195]), np.repeat([0, 1], 30).astype(np.int32), np.zeros(60, np.float32))
    found = retrieve(directions([10]), Small(rows), 12, np.random.default_rng(0), own)
    assert len(set(found.rows)) == 12
    assert found.rows.max() < 30
    np.testing.assert_array_equal(found.query, [0] * 4 + [-1] * 8)
    np.testing.assert_array_equal(np.isnan(found.similarity), found.query < 0)
    assert len(retrieve(directions([10]), Small(rows), 50, np.random.default_rng(0), own).rows) == 30


def test_a_seed_set_whose_clusters_are_small_says_so():
    rows = directions(np.concatenate([np.arange(30), 180 + np.arange(30)]))
    task = Task(
        Small(rows), 50, np.zeros((0, 2)), np.random.default_rng(0), levels=(2,),
        queries=Seed(directions([10]), ["seed.jpg"]),
    )  # fmt: skip
    chosen = choose("balanced", task)
    assert len(chosen.rows) == 30
    assert any("30 images chosen, fewer than 50" in note for note in chosen.notes)
    assert chosen.why[0] == "near seed.jpg (1.000)"


def test_what_is_too_similar_to_an_evaluation_set():
    rows = directions([0, 30, 60, 90])
    np.testing.assert_array_equal(similar(Small(rows), directions([0]), 0.8), [True, True, False, False])


# ---------------------------------------------------------------- near-copies
def test_one_of_each_component_stays():
    groups = [0, 1, 2, 90, 180, 181, 270]  # 0-1-2 chain at a limit of 1.5 degrees
    kept = without_repeats(Small(directions(groups)), float(np.cos(np.deg2rad(1.5))))
    np.testing.assert_array_equal(kept.rows, [0, 3, 4, 6])
    assert (kept.largest, kept.exact) == (3, True)


def test_above_the_limit_copies_are_sought_in_clusters(monkeypatch):
    monkeypatch.setattr("omma.curation.repeats.CLUSTER", 20)
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(100, 8)))
    both = np.concatenate([rows, rows])
    kept = without_repeats(Small(both), 0.999, exact=50)
    np.testing.assert_array_equal(kept.rows, np.arange(100))
    assert (kept.largest, kept.exact) == (2, False)


@pytest.mark.parametrize("copies", [0, 30])
def test_the_calibrated_similarity_follows_from_the_dimension(copies):
    """On the sphere in four dimensions pairs within an angle t are (2 t - sin 2 t) / 2 pi ~ 2 t^3 / 3 pi."""
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(3000, 4)))
    rows[:copies] = rows[copies : 2 * copies]
    angle = (1.5 * np.pi * 0.01 / 3000) ** (1 / 3)
    assert 1 - calibrated(Small(rows), rng) == pytest.approx(angle**2 / 2, rel=0.3)
    kept = without_repeats(Small(rows), calibrated(Small(rows), rng))
    assert 3000 - copies - 30 < len(kept.rows) <= 3000 - copies


def test_of_few_images_only_equal_ones_are_copies():
    rows = directions([0, 0.1, 50])
    assert calibrated(Small(rows[:1]), np.random.default_rng(0)) == 1 - 1e-5
    assert (
        len(without_repeats(Small(rows[[0, 0, 2]]), calibrated(Small(rows), np.random.default_rng(0))).rows)
        == 2
    )
    assert calibrated(Small(np.tile(rows[:1], (200, 1))), np.random.default_rng(0)) == 1 - 1e-5  # all equal


# ---------------------------------------------------------------- strategies
@pytest.mark.parametrize("strategy", ["balanced", "coreset", "typical", "random"])
def test_more_than_there_are_gives_all(strategy):
    rows = directions(np.arange(20))
    chosen = choose(strategy, Task(Small(rows), 50, np.zeros((0, 2)), np.random.default_rng(0)))
    np.testing.assert_array_equal(chosen.rows, np.arange(20))
    assert chosen.notes == ("only 20 images to choose from: all are listed",)


@pytest.mark.parametrize("strategy", ["balanced", "coreset", "typical", "random"])
def test_as_many_as_asked_for_and_weights_stand_for_the_pool(strategy):
    rows = unit(np.random.default_rng(0).normal(size=(200, 5)))
    task = Task(Small(rows), 30, np.zeros((0, 5)), np.random.default_rng(0), levels=(20, 4))
    chosen = choose(strategy, task)
    assert len(set(chosen.rows.tolist())) == len(chosen.why) == 30
    if strategy in ("balanced", "typical"):  # clusters that gave none are not stood for
        assert 100 <= chosen.weight.sum() <= 200
    else:
        assert chosen.weight.sum() == pytest.approx(200)


def test_balanced_choice_complements_labelled_images():
    rows = directions(np.concatenate([np.linspace(0, 40, 50), np.linspace(180, 220, 50)]))
    task = Task(Small(rows), 20, directions([10] * 20), np.random.default_rng(0), levels=(2,))
    assert (choose("balanced", task).rows >= 50).sum() == 20


def test_of_many_rows_some_are_candidates(monkeypatch):
    monkeypatch.setattr("omma.curation.strategies.CANDIDATES", 50)
    rows = unit(np.random.default_rng(0).normal(size=(200, 5)))
    chosen = choose("coreset", Task(Small(rows), 10, np.zeros((0, 5)), np.random.default_rng(0)))
    assert "chosen among 50 random images of 200" in chosen.notes
    assert chosen.weight.sum() == pytest.approx(200)


def test_the_least_sure_come_first():
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.7, 0.3]])
    task = Task(Small(directions([0, 1, 2])), 2, np.zeros((0, 2)), np.random.default_rng(0), probabilities=p)
    for strategy in ("margin", "entropy"):
        np.testing.assert_array_equal(choose(strategy, task).rows, [1, 2])
