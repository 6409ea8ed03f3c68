"""The verdict: collapses of each kind are accused, with a remedy; healthy and young runs are not."""

import dataclasses
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
    assert (verdict.level, verdict.state) == ("good", "unknown")  # nothing of the start is remembered
    assert verdict.text.startswith("not collapsed: features span")


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
    assert str(health.judge(readings, {"a": 6.0, "b": 10.0}, [signal])).endswith("yet: 6 of 10. R")
    assert health.judge(readings, {"a": 5.0, "b": 10.0}, [signal]).level == "good"


def test_reconstructions_no_better_than_a_constant_are_a_warning(even):
    verdict = health.judge(
        [reading(even, 0, 0.0), reading(even)], {"error_vs_mean_image": 1.0}, signals.RECONSTRUCTION
    )
    assert verdict.level == "warn"


def compared(auc=0.8, low=None, high=None, kept=0.4, rank=20.0, epochs=12.0, **fields):
    """A reading as the monitor takes it."""
    return health.Reading(
        step=100, progress=1.0, rank=rank, centred_rank=rank, std=0.5, spread=0.3, dim=64, epochs=epochs,
        images=200, view_auc=auc, view_auc_low=low, view_auc_high=high, neighbours_kept=kept, **fields,
    )  # fmt: skip


START = compared(kept=None, epochs=0.0)


@pytest.mark.parametrize(
    ("now", "state", "level", "words"),
    [
        (compared(0.9, 0.07, 0.13), "learning", "good", "told from other images in 90.0% of comparisons"),
        (compared(0.9, 0.07, 0.13), "learning", "good", "60% of neighbours are new; features span 20.0 dir"),
        (compared(0.81, -0.01, 0.03), "idle", "warn", "told from other images no better (81.0% of"),
        (compared(0.7, -0.13, -0.07), "idle", "warn", "nothing learned yet"),
        (
            compared(0.83, 0.01, 0.05, kept=0.99),
            "idle",
            "warn",
            "99% of the nearest neighbours are those of",
        ),
        (compared(0.6, -0.22, -0.18), "collapsed", "bad", "in 60.0% of comparisons, 80.0% at the start (50%"),
        (compared(0.75, -0.07, -0.03, rank=9.0), "collapsed", "bad", "in 75.0% of comparisons"),
        (
            compared(0.9, 0.07, 0.13, rank=1.5),
            "collapsed",
            "bad",
            "collapsed: features span 1.5 directions of 64",
        ),
        (
            compared(0.9, 0.07, 0.13, kept=0.7),
            "idle",
            "warn",
            "70% of the nearest neighbours are those",
        ),
        (
            compared(0.81, -0.01, 0.03, kept=0.8, knn_low=0.02),
            "learning",
            "good",
            "k-NN on held-out images is better",
        ),
    ],
)
def test_three_verdicts_by_what_changed_since_the_start(now, state, level, words):
    verdict = health.judge([START, now], {})
    assert (verdict.state, verdict.level) == (state, level)
    assert words in verdict.text
    assert "after 12 epochs" in verdict.text
    assert bool(verdict.remedy) == (state != "learning")


def test_weights_that_were_good_keep_their_neighbours():
    better = compared(0.9, 0.07, 0.13, kept=0.7)
    assert health.judge([START, better], {}, continued=True).state == "learning"


def test_narrow_features_that_tell_images_apart_have_not_collapsed(even):
    """As in runs of VICReg and BYOL: all within .02 in cosine, in fewer directions than at the start."""
    narrow = health.read(even[:, :10] @ even[:10] / 8 + 10.0, 100, 1.0)
    assert narrow.spread < health.SPREAD
    fields = {"view_auc": 0.9, "view_auc_low": 0.05, "view_auc_high": 0.15, "neighbours_kept": 0.3}
    assert health.judge([START, dataclasses.replace(narrow, **fields)], {}).state == "learning"


def test_the_remedy_of_an_idle_run_depends_on_its_length():
    young = health.judge([START, compared(0.8, -0.01, 0.01, epochs=0.28)], {})
    assert "after 0.28 epochs" in young.text
    assert young.remedy.startswith("Train longer")
    assert "--lr" in health.judge([START, compared(0.8, -0.01, 0.01, epochs=30.0)], {}).remedy
    assert "after 1 epoch." in str(health.judge([START, compared(0.8, -0.01, 0.01, epochs=1.0)], {}))


def test_a_network_that_stayed_as_it_was_is_idle_whatever_its_method_reports():
    metrics = {"alignment": 0.0, "uniformity": -0.01}  # of projections that nothing has trained
    unchanged = compared(0.8, -0.001, 0.001, kept=1.0)
    assert health.judge([START, unchanged], metrics, signals.CONTRASTIVE).state == "idle"
    changed = compared(0.8, -0.001, 0.001)
    assert health.judge([START, changed], metrics, signals.CONTRASTIVE).state == "collapsed"


def test_what_cannot_be_judged_is_said_with_its_cause():
    few = health.judge([START, dataclasses.replace(START, images=1)], {})
    assert few.text == "cannot be judged: 1 image cannot show what is learned"
    assert (few.level, few.state) == ("warn", "unknown")
    alike = health.judge([START, dataclasses.replace(START, alike=True)], {})
    assert alike.text == "cannot be judged: all 200 images of the sample look the same to the network"
    assert "--lr" not in few.remedy + alike.remedy


def test_a_verdict_is_read_back_from_the_log():
    line = {"verdict": "warn", "text": "not collapsed, nothing learned yet: x. Train longer", "state": "idle"}
    assert health.logged(line) == health.Verdict("warn", line["text"], state="idle")
    assert health.logged({"verdict": "good", "text": "healthy: rank 9"}).state == "unknown"  # of omma 0.1


def test_few_images_do_not_crash():
    for n in (1, 2, 3):
        readings = [reading(torch.randn(n, 8), 0, 0.0), reading(torch.randn(n, 8))]
        assert health.judge(readings, {}).text
