"""Exact nearest rows: closed forms, against fp64, ties, near-ties that bf16 cannot tell, and any split."""

import numpy as np
import pytest
import torch

from omma.ops import exact, nearest
from omma.ops.exact import Base

WAYS = {"bf16": True, "fp32": False, "sorted": None}
WITHOUT_NUMBA = "without-numba"


def rows(n, d=48, seed=0, mean=0.0):
    x = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32) + np.float32(mean)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_hand(queries, base, k, among=None, own=None):
    """By products in fp64, summed alike for all rows; of equal ones the lower row."""
    products = np.stack([(base.astype(np.float64) * q.astype(np.float64)).sum(1) for q in queries])
    if among is not None:
        products[:, np.setdiff1d(np.arange(len(base)), among)] = -np.inf
    if own is not None:
        products[np.arange(len(queries)), own] = -np.inf
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, order, 1), order


@pytest.fixture(params=[*WAYS, WITHOUT_NUMBA])
def searched(request, monkeypatch):
    """A search by one way, whatever this processor would choose."""
    way = WAYS.get(request.param)
    if request.param == WITHOUT_NUMBA:
        monkeypatch.setattr(exact, "SMALL", 0)
        monkeypatch.setattr(exact, "FEW", 0)
        monkeypatch.setattr(exact, "compiles", lambda: False)
        monkeypatch.setattr(Base, "_by_loops", lambda *_: pytest.fail("by loops"))
    elif way is None:
        monkeypatch.setattr(exact, "SMALL", 2**62)
    else:
        monkeypatch.setattr(exact, "SMALL", 0)
        monkeypatch.setattr(exact, "FEW", 0)
        monkeypatch.setattr(exact, "_has_bf16", lambda: way)

    def search(queries, blocks, k, **options):
        return Base(blocks if isinstance(blocks, list) else [blocks]).nearest(queries, k, **options)

    return search


def same(found, wanted):
    products, order = wanted
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.similarities, products, atol=1e-7)


def test_orthonormal_vectors_find_themselves(searched):
    base = np.eye(24, dtype=np.float32)
    found = searched(base, base, 2)
    assert found.indices[:, 0].tolist() == list(range(24))
    assert found.similarities.tolist() == [[1.0, 0.0]] * 24
    assert found.indices[:, 1].tolist() == [1] + [0] * 23  # all others are equal: the lowest row
    assert found.similarities.dtype == np.float32
    assert found.indices.dtype == np.int64


@pytest.mark.parametrize("mean", [0.0, 3.0], ids=["spread", "narrow"])
def test_equals_fp64(searched, mean):
    base, queries = rows(3000, mean=mean), rows(40, seed=1, mean=mean)
    same(searched(queries, base, 10), by_hand(queries, base, 10))


def test_duplicates_come_by_row_wherever_they_are(searched):
    base, queries = rows(2000), rows(20, seed=1)
    base[[1999, 5, 700, 701, 1300]] = base[900]
    queries[0] = base[900]
    found = searched(queries, [base[:701], base[701:702], base[702:]], 8)
    same(found, by_hand(queries, base, 8))
    assert found.indices[0, :6].tolist() == [5, 700, 701, 900, 1300, 1999]
    assert len(set(found.similarities[0, :6].tolist())) == 1


def test_near_ties_that_low_precision_cannot_tell(searched):
    """A thousand rows within 1e-6 of each other: below what bf16 and even products in fp32 can order."""
    base, queries = rows(1500), rows(20, seed=1)
    noise = np.random.default_rng(2).standard_normal((1000, 48)).astype(np.float32)
    base[300:1300] = base[7] + np.float32(1e-6) * noise
    queries[:10] = base[7] + np.float32(0.01) * queries[:10]
    same(searched(queries, base, 25), by_hand(queries, base, 25))


def test_collapsed_features(searched):
    base = np.repeat(rows(1), 1200, axis=0)
    found = searched(rows(20, seed=1), base, 5)
    assert (found.indices == np.arange(5)).all()


def test_of_zeros_and_large_norms(searched):
    base, queries = rows(800) * np.float32(1e3), rows(20, seed=1)
    base[:400] = 0
    base[500] *= 50
    same(searched(queries, base / np.float32(7), 6), by_hand(queries, base / np.float32(7), 6))
    nothing = searched(np.zeros((20, 48), np.float32), base, 4)
    assert nothing.similarities.tolist() == [[0.0] * 4] * 20
    assert nothing.indices.tolist() == [[0, 1, 2, 3]] * 20


def test_only_some_rows_count(searched):
    base, queries = rows(2500), rows(20, seed=1)
    among = np.sort(np.random.default_rng(3).permutation(2500)[:300])
    blocks = [base[:1000], base[1000:1001], base[1001:]]
    same(searched(queries, blocks, 7, among=among), by_hand(queries, base, 7, among))
    own = by_hand(queries, base, 1, among)[1][:, 0]
    same(searched(queries, blocks, 7, among=among, leave_out=own), by_hand(queries, base, 7, among, own))
    assert searched(queries, blocks, 7, among=among[:0]).indices.shape == (20, 0)
    assert searched(queries, blocks, 7, among=among[:3]).indices.shape == (20, 3)


def test_no_answer_depends_on_the_others(searched):
    base, queries = rows(3000), rows(33, seed=1)
    together = searched(queries, base, 10)
    again = searched(queries[5:25], [base[:50], base[50:2000], base[2000:]], 10)
    np.testing.assert_array_equal(again.indices, together.indices[5:25])
    np.testing.assert_array_equal(again.similarities, together.similarities[5:25])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_equals_fp64_on_many_kinds(searched, seed):
    """Clusters of any tightness, copies, and queries among them."""
    generator = np.random.default_rng(seed)
    d, tight = int(generator.integers(2, 300)), 10.0 ** -generator.uniform(0, 7)
    centres = rows(12, d, seed)
    base = centres[generator.integers(0, 12, 4000)] + np.float32(tight) * rows(4000, d, seed + 100)
    base[generator.integers(0, 4000, 300)] = base[generator.integers(0, 4000, 300)]
    queries = base[generator.integers(0, 4000, 30)] + np.float32(tight) * rows(30, d, seed + 200)
    same(searched(queries, base, 17), by_hand(queries, base, 17))


def test_bound_is_needed(searched, monkeypatch, request):
    """Without the bound of what rounding hides, low precision gives wrong answers here."""
    if "bf16" not in request.node.callspec.id:
        pytest.skip("fp32 rounds too little to be seen")
    base, queries = rows(1500), rows(20, seed=1)
    base[300:1300] = base[7] + np.float32(1e-3) * rows(1000, seed=2)
    queries = base[7] + np.float32(0.01) * queries
    same(searched(queries, base, 25), by_hand(queries, base, 25))
    monkeypatch.setattr(exact._Asked, "error", lambda self, low, largest: np.zeros(len(self.norm)))
    found = searched(queries, base, 25)
    assert (found.indices != by_hand(queries, base, 25)[1]).any()


# ---------------------------------------------------------------- the functions that others use
def test_nearest_leaves_each_row_out_of_its_own():
    base = rows(200)
    base[150] = base[3]
    found = nearest.nearest(None, base, 5)
    np.testing.assert_array_equal(found.indices, by_hand(base, base, 5, own=np.arange(200))[1])
    assert found.indices[3, 0] == 150
    assert found.indices[150, 0] == 3
    assert nearest.nearest(None, base, 500).indices.shape == (200, 199)
    assert nearest.nearest(base[:2], base, 500).indices.shape == (2, 200)


def test_nearest_refuses_what_has_no_answer():
    for base, k in ((rows(5), 0), (rows(1), 1), (rows(0), 3)):
        with pytest.raises(ValueError, match="must be at least 1"):
            nearest.nearest(None, base, k)


def test_unit_keeps_zeros():
    found = nearest.unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_pairs_above(monkeypatch):
    base = rows(60, 8)
    products = base @ base.T
    monkeypatch.setattr(nearest, "BLOCK", 600)
    found = [np.concatenate(parts) for parts in zip(*nearest.pairs_above(base, 0.5))]
    i, j = np.nonzero(np.triu(products >= 0.5, 1))
    np.testing.assert_array_equal(found[:2], [i, j])
    np.testing.assert_allclose(found[2], products[i, j], atol=1e-6)
    others = [np.concatenate(parts) for parts in zip(*nearest.pairs_above(base[:10], 0.4, base[10:]))]
    np.testing.assert_array_equal(others[:2], np.nonzero(products[:10, 10:] >= 0.4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu():
    base, queries = rows(5000), rows(40, seed=1)
    base[4000] = base[10]
    queries[0] = base[10]
    found = Base([base[:3000], base[3000:]], device=torch.device("cuda")).nearest(queries, 10)
    same(found, by_hand(queries, base, 10))
