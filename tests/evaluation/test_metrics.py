"""Flat metrics: scikit-learn's values, textbook calibration, and intervals that draw images."""

import numpy as np
import pytest
from sklearn import metrics as sk

from omma.evaluation import METRICS, average_precision, confidence, metrics


def answers(m=200, classes=8, strength=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, m)
    logits = rng.normal(size=(m, classes)) + strength * (labels[:, None] == np.arange(classes))
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return labels, scores.astype(np.float32)


def test_intervals_draw_what_scikit_learn_measures():
    """The sums behind the intervals give scikit-learn's values where every image is drawn once."""
    rng = np.random.default_rng(0)
    for case in range(100):
        classes, m = int(rng.integers(1, 7)), int(rng.integers(1, 30))
        some = rng.choice(classes, rng.integers(1, classes + 1), replace=False)  # absent classes, one class
        labels, predictions = rng.choice(some, m), rng.integers(0, classes, m)
        found = metrics.single_label(predictions, labels, classes) if case < 5 else None
        sums = {
            "support": np.bincount(labels, minlength=classes).astype(float),
            "predicted": np.bincount(predictions, minlength=classes).astype(float),
            "hits": np.bincount(labels[predictions == labels], minlength=classes).astype(float),
        }
        drawn = metrics._of_sums(sums)
        for name, value in metrics._scikit(predictions, labels).items():
            assert drawn[name] == pytest.approx(value, abs=1e-12), name
            assert found is None or found.overall[name].value == value
        each = metrics._counted(labels, predictions, None, np.arange(classes))
        for name, value in metrics._class_figures(sums).items():
            assert value == pytest.approx(each[name], abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_of_a_draw_is_scikit_learns(ties):
    """A draw that takes images several times is the same as a longer test part."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        positive = rng.random(40) < 0.3
        positive[0] = True
        scores = rng.normal(size=40).round(0 if ties else 9)
        counts = rng.integers(0, 3, 40)
        counts[0] = 1
        pair = average_precision._Ranked.of(scores, positive).segments(np.arange(40), 40)
        ours = average_precision._ap(*pair, np.stack([np.ones(40), counts], 1).astype(np.float32))
        expected = [
            sk.average_precision_score(positive, scores),
            sk.average_precision_score(positive.repeat(counts), scores.repeat(counts)),
        ]
        assert ours == pytest.approx(expected, abs=1e-12)


def test_values_are_scikit_learns():
    labels, scores = answers()
    predictions = scores.argmax(1)
    found = metrics.single_label(predictions, labels, 8, scores, True)
    one_hot = np.eye(8)[labels]
    expected = {
        "top1": sk.accuracy_score(labels, predictions),
        "top5": sk.top_k_accuracy_score(labels, scores, k=5),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions),
        "f1_macro": sk.f1_score(labels, predictions, average="macro"),
        "f1_micro": sk.f1_score(labels, predictions, average="micro"),
        "map_macro": sk.average_precision_score(one_hot, scores, average="macro"),
        "map_micro": sk.average_precision_score(one_hot, scores, average="micro"),
        "nll": sk.log_loss(labels, scores),
        "ece": metrics.calibration_error(scores.max(1), predictions == labels),
        "brier": ((scores - one_hot) ** 2).sum(1).mean(),
    }
    assert {k: found.overall[k].value for k in expected} == pytest.approx(expected, abs=1e-6)
    assert list(found.overall) == [k for k in metrics.NAMES if k != "exact_match"]
    for name, (value, (low, high)) in found.overall.items():
        assert low < value < high, name
    assert found.by_class["ap"].value == pytest.approx(
        sk.average_precision_score(one_hot, scores, average=None)
    )


def test_the_command_line_knows_the_groups():
    assert tuple(metrics.GROUPS) == METRICS


def test_micro_and_macro():
    """Three binary tasks of unequal size, TP = 1 + 1 + 10 and FP = 1 + 9 + 90: .107 micro, .233 macro."""
    targets, answered = np.zeros((112, 3), int), np.zeros((112, 3))
    for k, (hits, wrong) in enumerate(((1, 1), (1, 9), (10, 90))):
        targets[:hits, k] = 1
        answered[: hits + wrong, k] = 1
    found = metrics.multi_label(answered, targets).overall
    assert found["precision_micro"].value == pytest.approx(12 / 112)
    assert found["precision_macro"].value == pytest.approx((0.5 + 0.1 + 0.1) / 3)


def test_several_labels():
    rng = np.random.default_rng(2)
    targets = (rng.random((150, 5)) < [0.5, 0.3, 0.1, 0.2, 0]).astype(int)
    scores = (0.6 * rng.random((150, 5)) + 0.4 * targets).astype(np.float32)
    scores[:, 4] = 0.1
    found = metrics.multi_label(scores, targets)
    answered = (scores >= 0.5).astype(int)
    some = slice(0, 4)  # no image has the last class, and none is answered it
    expected = {
        "exact_match": sk.accuracy_score(targets, answered),
        "f1_macro": sk.f1_score(targets[:, some], answered[:, some], average="macro"),
        "f1_micro": sk.f1_score(targets, answered, average="micro"),
        "map_macro": sk.average_precision_score(targets[:, some], scores[:, some], average="macro"),
        "map_micro": sk.average_precision_score(targets, scores, average="micro"),
    }
    assert {k: found.overall[k].value for k in expected} == pytest.approx(expected)
    assert all(low < value < high for value, (low, high) in found.overall.values())
    assert [np.isnan(found.by_class[name].value[4]) for name in ("ap", "f1")] == [True, True]

    unknown = targets.copy()
    unknown[:50, 0] = -1
    part = metrics.multi_label(scores, unknown)
    expected = sk.average_precision_score(targets[50:, 0], scores[50:, 0])
    assert part.by_class["ap"].value[0] == pytest.approx(expected)
    assert part.by_class["f1"].value[0] == pytest.approx(sk.f1_score(targets[50:, 0], answered[50:, 0]))
    with pytest.raises(ValueError, match="no known label"):
        metrics.multi_label(scores, np.full_like(targets, -1))


def test_calibration_error_equals_the_textbook_loop():
    rng = np.random.default_rng(3)
    confidences = np.concatenate([rng.random(500), [0, 1, 1 / 15, 14 / 15, 0.2, 1]])
    correct = rng.random(506) < confidences
    expected = 0.0
    for i in range(15):
        inside = (confidences > i / 15) & (confidences <= (i + 1) / 15) | ((i == 0) & (confidences == 0))
        if inside.any():
            expected += inside.mean() * abs(confidences[inside].mean() - correct[inside].mean())
    assert metrics.calibration_error(confidences, correct) == pytest.approx(expected, abs=1e-12)


def test_a_confidence_of_one_is_in_the_last_bin():
    """torchmetrics 1.9.0 gives it a bin of its own, and .525."""
    found = metrics.calibration_error(np.array([0.95, 1.0]), np.array([True, False]))
    assert found == pytest.approx(0.475)
    assert metrics.bin_of(np.array([0.0, 1.0])).tolist() == [0, 14]


def test_the_order_of_classes_changes_nothing():
    labels, scores = answers()
    order = np.random.default_rng(4).permutation(8)
    moved = np.argsort(order)[labels]
    one = metrics.single_label(scores.argmax(1), labels, 8, scores, True).overall
    other = metrics.single_label(scores[:, order].argmax(1), moved, 8, scores[:, order], True).overall
    for name in one:
        assert one[name].value == pytest.approx(other[name].value, abs=1e-7)
        assert one[name].interval95 == pytest.approx(other[name].interval95, abs=1e-6)


def test_ties_count_against_the_model():
    scores = np.full((3, 6), 0.5, np.float32)
    scores[2, 1] = 0.9
    assert metrics.rank(scores, np.array([0, 5, 1])).tolist() == [5, 5, 0]


def test_nothing_wrong_proves_no_perfection():
    labels = np.repeat(np.arange(3), 10)
    found = metrics.single_label(labels, labels, 3)
    assert found.overall["f1_macro"].interval95 == confidence.exact(10, all_right=True)
    assert found.overall["f1_micro"].interval95 == confidence.exact(30, all_right=True)
    assert found.by_class["recall"].interval95[0] == pytest.approx(confidence.exact(10, all_right=True))


def test_classes_that_the_test_part_lacks():
    found = metrics.single_label(np.array([0, 0, 1]), np.array([0, 0, 0]), 4)
    assert found.overall["f1_macro"].value == pytest.approx(0.4)  # (.8 + 0) / 2: class 1 was answered
    assert found.overall["balanced_accuracy"].value == pytest.approx(2 / 3)
    assert np.isnan(found.by_class["f1"].value[2:]).all()
    with pytest.raises(ValueError, match="no test images"):
        metrics.single_label(np.zeros(0, int), np.zeros(0, int), 4)


def test_intervals_cover():
    """95 % intervals of F1 and mAP hold the value of a very large sample in most samples."""
    labels, scores = answers(100_000, 4)
    truth = {k: sk_value(k, labels, scores) for k in ("f1_macro", "map_macro")}
    missed = dict.fromkeys(truth, 0)
    for seed in range(20):
        labels, scores = answers(150, 4, seed=100 + seed)
        found = metrics.single_label(scores.argmax(1), labels, 4, scores).overall
        for name, value in truth.items():
            low, high = found[name].interval95
            missed[name] += not low <= value <= high
    assert max(missed.values()) <= 4  # of 20; more than 4 come by chance in 1 of 400


def sk_value(name, labels, scores):
    if name == "f1_macro":
        return sk.f1_score(labels, scores.argmax(1), average="macro")
    return sk.average_precision_score(np.eye(scores.shape[1])[labels], scores)
