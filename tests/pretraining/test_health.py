"""The verdict: collapses of each kind are accused, with a remedy; healthy and young runs are not."""

import math

import pytest
import torch

from omma.core.protocols import HealthSignal
from omma.methods.shared import signals
from omma.pretraining import health

LIMIT = math.log(4096)


def reading(features, step=100, progress=0.5):
    return health.read(features, step, progress)


@pytest.fixture
def even():
    return torch.randn(256, 64, generator=torch.Generator().manual_seed(0))


def test_healthy_features_are_not_accused(even):
    verdict = health.judge([reading(even, 0, 0.0), reading(even)], {})
    assert verdict.level == "good"
    assert "effective rank" in verdict.text


def test_constant_features_are_collapse(even):
    alike = torch.ones(256, 64) + 1e-3 * even
    verdict = health.judge([reading(even, 0, 0.0), reading(alike)], {})
    assert verdict.level == "bad"
    assert "collapsed: all features within" in verdict.text
    assert verdict.remedy


def test_a_large_common_direction_is_not_collapse(even):
    """As after ten minutes of MAE on CIFAR-10: close in cosine, and more directions than before."""
    before = health.read(even @ torch.diag(torch.arange(64) < 14).float() + 0.5, 0, 0.0)
    now = reading(even + 10.0)
    assert now.spread < health.SPREAD < before.spread
    assert health.judge([before, now], {}).level == "good"
    fewer = reading(even[:, :10] @ even[:10] / 8 + 10.0)
    assert health.judge([reading(even, 0, 0.0), fewer], {}).level == "bad"


def test_few_directions_are_collapse(even):
    line = even[:, :1] * torch.ones(1, 64)
    verdict = health.judge([reading(even, 0, 0.0), reading(line)], {})
    assert verdict.level == "bad"
    assert "directions" in verdict.text


def test_broken_numbers_are_named_at_once(even):
    verdict = health.judge([reading(even, 0, 0.0), reading(even * float("nan"), 1, 0.01)], {})
    assert verdict.level == "bad"
    assert "not finite" in verdict.text


def test_young_runs_are_not_judged(even):
    alike = torch.ones(256, 64) + 1e-3 * even
    verdict = health.judge([reading(even, 0, 0.0), reading(alike, 5, 0.05)], {})
    assert verdict.text.startswith("too early")


@pytest.mark.parametrize(
    ("metrics", "family", "words"),
    [
        (
            {"teacher_entropy": LIMIT - 0.01, "teacher_kl_to_uniform": 0.01, "teacher_entropy_limit": LIMIT},
            signals.DISTILLATION,
            "uniform",
        ),
        (
            {"teacher_entropy": 0.0, "teacher_kl_to_uniform": LIMIT - 0.1, "teacher_entropy_limit": LIMIT},
            signals.DISTILLATION,
            "same prototype",
        ),
        ({"alignment": 0.0, "uniformity": -0.01}, signals.CONTRASTIVE, "nearly equal"),
    ],
)
def test_collapse_shows_in_what_the_method_reports(even, metrics, family, words):
    verdict = health.judge([reading(even, 0, 0.0), reading(even)], metrics, family)
    assert verdict.level == "bad"
    assert words in verdict.text
    assert verdict.remedy
    # a metric means something only to a method that declares it
    assert health.judge([reading(even, 0, 0.0), reading(even)], metrics).level == "good"


@pytest.mark.parametrize(
    ("entropy", "remedy"), [(0.95, "Lower --method.teacher-temp"), (0.5, "Never switch centring off")]
)
def test_the_remedy_for_collapsed_features_is_the_methods(even, entropy, remedy):
    metrics = {
        "teacher_entropy": entropy * LIMIT,
        "teacher_kl_to_uniform": 0.0,
        "teacher_entropy_limit": LIMIT,
    }
    readings = [reading(even, 0, 0.0), reading(torch.ones(256, 64) + 1e-3 * even)]
    verdict = health.judge(readings, metrics, signals.DISTILLATION)
    assert verdict.text.startswith("collapsed: all features within")
    assert verdict.remedy.startswith(remedy)
    assert health.judge(readings, {}, signals.DISTILLATION).remedy == "Lower --lr"
    assert "temperature" in health.judge(readings, {"uniformity": -2.0}, signals.CONTRASTIVE).remedy


def test_a_limit_may_be_a_share_of_another_metric(even):
    signal = HealthSignal(
        kind="verdict",
        metric="a",
        limit=0.5,
        of="b",
        level="warn",
        text="{value:.0f} of {of:.0f}",
        remedy="R",
    )
    readings = [reading(even, 0, 0.0), reading(even)]
    assert str(health.judge(readings, {"a": 6.0, "b": 10.0}, [signal])) == "6 of 10. R"
    assert health.judge(readings, {"a": 5.0, "b": 10.0}, [signal]).level == "good"


def test_reconstructions_no_better_than_a_constant_are_a_warning(even):
    verdict = health.judge(
        [reading(even, 0, 0.0), reading(even)], {"error_vs_mean_image": 1.0}, signals.RECONSTRUCTION
    )
    assert verdict.level == "warn"


def test_few_images_do_not_crash():
    for n in (1, 2, 3):
        readings = [reading(torch.randn(n, 8), 0, 0.0), reading(torch.randn(n, 8))]
        assert health.judge(readings, {}).text
