import math

import pytest
import torch

from omma.methods.shared import self_distillation
from omma.ops import statistics


def test_effective_rank_of_orthonormal_rows_is_their_number():
    q = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[
        0
    ]
    assert statistics.effective_rank(q) == pytest.approx(12, rel=1e-6)
    assert statistics.effective_rank(q[:5] * 1e-30) == pytest.approx(5, rel=1e-6)  # fp32 squares would vanish


def test_effective_rank_of_collapse_is_one():
    assert statistics.effective_rank(torch.full((64, 16), 3.0)) == pytest.approx(1, abs=1e-3)
    assert statistics.effective_rank(torch.zeros(64, 16)) == 1.0


def test_effective_rank_equals_the_svd_definition():
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(1))
    p = torch.linalg.svdvals(x.double())
    p = p / p.sum()
    assert statistics.effective_rank(x) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-9)
    assert statistics.effective_rank(x.T) == pytest.approx(statistics.effective_rank(x), rel=1e-9)


def test_not_finite_is_reported_as_nan():
    x = torch.randn(8, 4)
    x[3, 2] = torch.nan
    assert math.isnan(statistics.effective_rank(x))
    assert torch.isnan(statistics.dimension_std(x)).tolist() == [False, False, True, False]


def test_dimension_std():
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert statistics.dimension_std(x).tolist() == [1.0, 0.0]


def test_entropy_and_kl_at_their_limits():
    k = 16
    uniform, same = torch.full((2, 5, k), 1 / k), torch.eye(k)[:1].expand(5, k)
    assert statistics.entropy(uniform).shape == (2, 5)
    assert float(statistics.entropy(uniform).mean()) == pytest.approx(math.log(k))
    assert float(statistics.kl_to_uniform(uniform[0, 0])) == pytest.approx(0.0, abs=1e-6)
    assert float(statistics.entropy(same).mean()) == 0
    assert float(statistics.kl_to_uniform(same[0])) == pytest.approx(math.log(k))


def test_what_is_watched_of_a_teacher():
    """Each assignment sharp and all prototypes in use; then one alone."""
    all_used, one = (
        self_distillation.collapse_stats(torch.eye(16)),
        self_distillation.collapse_stats(torch.eye(16)[:1].expand(2, 5, 16)),
    )
    assert all_used["teacher_entropy"] == one["teacher_entropy"] == 0
    assert float(all_used["teacher_kl_to_uniform"]) == pytest.approx(0.0, abs=1e-6)
    assert float(one["teacher_kl_to_uniform"]) == pytest.approx(math.log(16))
    assert float(one["teacher_entropy_limit"]) == pytest.approx(math.log(16))
