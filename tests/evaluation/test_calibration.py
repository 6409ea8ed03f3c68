"""Temperature, thresholds and abstention: closed forms, brute force, and promises kept on unseen data."""

import numpy as np
import pytest
import torch

from omma.evaluation import calibration
from omma.evaluation.calibration import abstention, calibrate, limit, temperature, thresholds
from omma.evaluation.linear import one_hot
from omma.weights.classifier import Classifier, HeldOut


def drawn(n=4000, k=5, seed=0):
    """Logits, and labels drawn by their softmax: the right temperature is 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, k))
    p = torch.from_numpy(logits).softmax(1).numpy()
    return logits, (p.cumsum(1) > rng.random((n, 1))).argmax(1)


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_factor_of_the_logits(factor):
    logits, labels = drawn()
    assert temperature(logits * factor, one_hot(labels, 5)) == pytest.approx(factor, rel=0.06)


def test_the_temperature_has_bounds_and_few_images_make_no_certainty():
    targets = one_hot(np.arange(20) % 4, 4)
    t = temperature(targets.astype(np.float64), targets)
    p = torch.from_numpy(targets / t).softmax(1).max(1).values
    assert p.min() < 1 - 1 / 40  # 20 of 20 right do not prove it
    wrong = np.roll(targets, 1, axis=1).astype(np.float64)
    assert temperature(wrong, targets) == pytest.approx(calibration.HOTTEST, rel=1e-3)


def test_the_temperature_of_sigmoids_leaves_out_what_is_not_known():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3000, 3))
    targets = (rng.random((3000, 3)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    assert temperature(logits * 2, targets, True) == pytest.approx(2, rel=0.1)
    unknown = targets.copy()
    unknown[:, 2] = -1
    logits[:, 2] = 99
    assert temperature(logits * 2, unknown, True) == pytest.approx(2, rel=0.15)


def test_thresholds_have_the_best_f1_of_all():
    rng = np.random.default_rng(0)
    p = rng.random((40, 3)).round(2)
    y = (rng.random((40, 3)) < p).astype(np.float32)
    y[:, 2] = 0
    y[0, 0] = -1
    found = thresholds(p, y)
    for c in (0, 1):
        known = y[:, c] >= 0

        def f1(t, c=c, known=known):
            answer, truth = p[known, c] >= t, y[known, c] > 0
            return 2 * (answer & truth).sum() / (answer.sum() + truth.sum())

        assert f1(found[c]) == max(f1(t) for t in np.arange(0, 1, 0.005))
    assert found[2] == 0.5  # nobody has it


def sample(n, rng):
    """Confidences and whether answers are right: as often as they say."""
    confidence = rng.beta(4, 1, n)
    return confidence, rng.random(n) < confidence


@pytest.mark.parametrize("error", [0.05, 0.1])
def test_abstention_keeps_the_error_on_unseen_images(error):
    """The share of samples whose true error is above the stated one is at most 5 %, give or take."""
    rng, broken, answered = np.random.default_rng(0), 0, []
    confidence, correct = sample(100_000, rng)
    for _ in range(200):
        found = abstention(*sample(600, rng), error)
        if found is not None:
            kept = confidence >= found.threshold
            broken += (~correct[kept]).mean() > error
            answered.append(found.answered)
    assert broken / 200 < 0.085
    assert np.mean(answered) > 0.15


def test_abstention_where_nothing_can_keep_the_error():
    right = np.ones(40, bool)
    assert abstention(np.linspace(0.5, 1, 40), right, 0.05) is None  # 0 of 59 are needed to prove it
    found = abstention(np.linspace(0.5, 1, 59), np.ones(59, bool), 0.05)
    assert found is not None
    assert (found.answered, found.wrong) == (1, 0)
    assert found.bound == pytest.approx(1 - 0.05 ** (1 / 59))
    assert abstention(np.full(200, 0.9), np.arange(200) % 5 > 0, 0.1) is None
    with pytest.raises(ValueError, match="error=0"):
        abstention(np.ones(9), np.ones(9, bool), 0)


def test_equal_confidences_are_answered_alike():
    confidence = np.repeat([0.9, 0.6], 100)
    correct = np.r_[np.ones(100, bool), np.zeros(100, bool)]
    found = abstention(confidence, correct, 0.05)
    assert found is not None
    assert (found.threshold, found.answered) == (0.9, 0.5)


def test_a_classifier_is_calibrated_and_its_answers_kept():
    logits, labels = drawn(2000)
    classifier = Classifier(classes=tuple("abcde"), weight=torch.zeros(5, 3))
    found = calibrate(classifier, (logits * 3).astype(np.float32), one_hot(labels, 5))
    assert found.calibration.temperature == pytest.approx(3, rel=0.1)
    assert found.held_out is not None
    assert found.held_out.correct.float().mean() == pytest.approx((logits.argmax(1) == labels).mean())
    several = Classifier(classes=("a", "b"), weight=torch.zeros(2, 3), multi_label=True)
    targets = one_hot(np.array([[1, 0], [0, 1], [1, 1], [0, -1]], np.int8), 2)
    assert len(calibrate(several, targets * 4 - 2, targets).calibration.thresholds or ()) == 2


def test_the_limit_is_chosen_given_or_refused_in_one_line():
    plain = Classifier(classes=("a", "b"), weight=torch.zeros(2, 3))
    kept = Classifier(
        classes=("a", "b"),
        weight=torch.zeros(2, 3),
        held_out=HeldOut(torch.linspace(0.5, 1, 100), torch.ones(100, dtype=torch.bool)),
    )
    several = Classifier(classes=("a", "b"), weight=torch.zeros(2, 3), multi_label=True)
    assert limit(plain).threshold is None
    assert limit(plain, threshold=0.7).threshold == 0.7
    assert limit(kept).threshold == 0.5
    for arguments, words in (
        ((plain, 0.05), "keeps no answers"),
        ((kept, 0.001), "no threshold keeps"),
        ((kept, 0.1, 0.5), "both given"),
        ((kept, None, 1.5), "must lie in"),
        ((several, 0.1), "several labels"),
    ):
        with pytest.raises(ValueError, match=words):
            limit(*arguments)
