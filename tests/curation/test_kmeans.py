"""k-means: scikit-learn's clusters where they are clear, and what becomes of the awkward cases."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from omma.curation.kmeans import assign, best_of, first_centroids, kmeans
from omma.curation.parts import Parts
from omma.features.vectors import ArrayVectors


class Small(ArrayVectors):
    """Rows that come in small blocks."""

    def blocks(self, rows=0):
        yield from super().blocks(37)


@pytest.fixture(scope="module")
def blobs():
    rows, _ = make_blobs(600, 5, centers=8, cluster_std=0.3, random_state=1)
    return rows.astype(np.float32)


def test_separated_blobs_as_scikit_learn(blobs):
    found = best_of(Small(blobs), 8, 3)
    theirs = KMeans(8, n_init=3, random_state=0).fit(blobs)
    assert found.inertia == pytest.approx(theirs.inertia_, rel=1e-4)
    pairs = set(zip(found.assignment.tolist(), theirs.labels_.tolist()))
    assert len(pairs) == 8  # the same parts
    ours, centers = (c[np.lexsort(c.T)] for c in (found.centroids, theirs.cluster_centers_))
    np.testing.assert_allclose(ours, centers, atol=1e-4)


def test_the_same_lloyd_pass_as_scikit_learn(blobs):
    start = blobs[:8]
    found = kmeans(Small(blobs), 8, start=start, iterations=100, tolerance=0)
    theirs = KMeans(8, init=start, n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(blobs)
    np.testing.assert_allclose(found.centroids, theirs.cluster_centers_, atol=1e-4)
    np.testing.assert_array_equal(found.assignment, theirs.labels_)


def test_distances_are_to_the_nearest_centroid_and_blocks_change_nothing(blobs):
    centroids = blobs[[0, 100, 200]]
    one, small = assign(ArrayVectors(blobs), centroids), assign(Small(blobs), centroids)
    exact = np.square(blobs[:, None].astype(float) - centroids).sum(-1)
    np.testing.assert_array_equal(one.assignment, exact.argmin(1))
    np.testing.assert_allclose(one.distances, exact.min(1), atol=1e-3)
    np.testing.assert_array_equal(one.assignment, small.assignment)


def test_an_empty_cluster_moves_to_the_farthest_row():
    rows = np.array([[0, 0], [0, 1], [10, 0], [10, 1]], np.float32)
    far = np.array([[0, 0.5], [100, 100]], np.float32)  # the second has no row
    found = kmeans(ArrayVectors(rows), 2, start=far)
    np.testing.assert_allclose(np.sort(found.centroids, axis=0), [[0, 0.5], [10, 0.5]])


@pytest.mark.parametrize("k", [3, 300])
def test_duplicates_make_no_more_clusters_than_distinct_rows(k):
    rows = np.repeat(np.eye(3, dtype=np.float32), 200, axis=0)
    found = kmeans(ArrayVectors(rows), k)
    assert sorted(found.sizes) == [200, 200, 200]
    assert found.inertia == pytest.approx(0, abs=1e-3)


def test_more_clusters_than_rows_and_none(blobs):
    assert len(kmeans(ArrayVectors(blobs[:5]), 9).centroids) == 5
    with pytest.raises(ValueError, match="k=0: must be at least 1"):
        kmeans(ArrayVectors(blobs), 0)


def test_many_first_centroids_are_distinct_rows_and_cover_rare_places():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(5000, 4)), 50 + rng.normal(size=(5, 4))]).astype(np.float32)
    first = first_centroids(ArrayVectors(rows), 400, rng)
    assert len(np.unique(first, axis=0)) == 400
    assert (first[:, 0] > 40).any()


def test_seeds_decide(blobs):
    one, two, other = (kmeans(ArrayVectors(blobs), 20, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.centroids, two.centroids)
    assert not np.array_equal(one.centroids, other.centroids)


@pytest.mark.parametrize("saves", [1, 2, 4])
def test_continues_after_a_kill_with_the_same_result(blobs, tmp_path, saves):
    whole = kmeans(Small(blobs), 30, tolerance=0)
    with pytest.raises(KeyboardInterrupt):
        kmeans(Small(blobs), 30, tolerance=0, parts=Killed(tmp_path, saves))
    parts = Parts(tmp_path)
    assert parts.load("kmeans")["done"] == saves - 1
    found = kmeans(Small(blobs), 30, tolerance=0, parts=parts)
    np.testing.assert_array_equal(found.centroids, whole.centroids)
    np.testing.assert_array_equal(found.assignment, whole.assignment)


def test_a_damaged_part_is_done_again(blobs, tmp_path):
    parts = Parts(tmp_path)
    whole = kmeans(Small(blobs), 5, parts=parts)
    file = tmp_path / "kmeans.npz"
    file.write_bytes(file.read_bytes()[:-40])
    assert parts.load("kmeans") is None
    np.testing.assert_array_equal(kmeans(Small(blobs), 5, parts=parts).centroids, whole.centroids)


class Killed(Parts):
    """Ends the process, as it were, after so many saves."""

    def __init__(self, folder, saves):
        super().__init__(folder)
        self.left = saves

    def save(self, name, **arrays):
        super().save(name, **arrays)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
