"""Feature arrays judged in one call: the judges' own answers, on rows that do not overlap, with intervals."""

import numpy as np
import pytest

from omma.data.sources.split import stratified
from omma.evaluation import confidence, knn, linear
from omma.evaluation.arrays import judge
from omma.evaluation.split import Split


def clouds(n: int = 120, apart: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping clouds of n / 2 points in eight dimensions, and which each point is of."""
    labels = np.arange(n) % 2
    noise = np.random.default_rng(seed).normal(size=(n, 8))
    return (noise + apart * labels[:, None]).astype(np.float32), labels


def test_the_scores_are_those_of_the_judges() -> None:
    features, labels = clouds()
    voted, probed = judge(features, labels)
    train, test = stratified(labels)
    data = Split(features[train], labels[train], features[test], labels[test])
    assert (voted.protocol, probed.protocol) == ("knn", "linear")
    assert voted.test.tolist() == probed.test.tolist() == test.tolist()
    assert voted.predictions.tolist() == knn.predict_each(data)[20].tolist()
    assert probed.predictions.tolist() == linear.predict(data).predictions.tolist()
    for score in (voted, probed):
        correct = score.predictions == labels[test]
        assert score.correct.tolist() == correct.tolist()
        assert score.value == correct.mean()
        assert 0.5 < score.value < 1  # the clouds overlap
        assert score.interval95 == confidence.bootstrap(correct)
        assert score.majority == 0.5


def test_the_test_rows_may_be_named_and_labels_may_be_texts() -> None:
    features, labels = clouds(apart=9.0)
    names = np.array(["bee", "ant"])[labels]
    test = np.arange(120) >= 110
    for score in judge(features, names, test=test):
        assert score.test.tolist() == list(range(110, 120))
        assert score.predictions.tolist() == names[110:].tolist()
        assert score.interval95 == confidence.exact(10, all_right=True)
    assert repr(judge(features, names, test=test)[1]) == (
        "<ArrayScore: linear probe 100.0% (69.2 to 100.0); largest class 50.0%; 10 test rows>"
    )


def test_groups_stay_on_one_side_and_intervals_draw_them() -> None:
    features, labels = clouds(n=240, apart=0.5)
    groups = np.arange(240) // 8  # of both classes each
    patients = np.array([f"p{group}" for group in groups])
    score = judge(features, labels, groups=patients)[1]
    tested = set(groups[score.test].tolist())
    assert tested.isdisjoint(groups[np.setdiff1d(np.arange(240), score.test)].tolist())
    assert score.interval95 == confidence.bootstrap(score.correct, groups=groups[score.test])
    alone = judge(features, labels, groups=groups, test=groups == 3)[0]
    assert alone.interval95 == (0.0, 1.0)


def test_few_rows_have_fewer_neighbours() -> None:
    features, labels = clouds(n=12, apart=9.0)
    assert judge(features, labels)[0].value in (0.0, 0.5, 1.0)


def test_unrelated_labels_are_not_learnt() -> None:
    features, _ = clouds(n=400)
    labels = np.random.default_rng(1).integers(0, 2, 400)
    for score in judge(features, labels):
        assert score.interval95[0] < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(3, int)}, r"features \[120, 8\] and labels \[3\]: give features \[n, d\] and"),
        ({"features": np.zeros(120)}, r"features \[120\] and labels \[120\]: give features"),
        ({"test": np.ones(5, bool)}, r"and test \[5\]: give features \[n, d\] and test \[n\]"),
        ({"groups": np.zeros(7)}, r"and groups \[7\]"),
        ({"labels": np.arange(120) % 2 - 1}, r"60 rows with no label; leave them out"),
        ({"labels": np.where(np.arange(120) < 3, np.nan, 1.0)}, r"3 rows with no label"),
        ({"labels": np.ones(120, int)}, "all train images have the same label"),
        ({"features": np.full((120, 8), np.nan)}, "are not finite"),
        ({"test": np.zeros(120, bool)}, "no labelled images in the test part"),
    ],
    ids=["labels", "vectors", "test", "groups", "negative", "nan", "one class", "not finite", "none"],
)
def test_arrays_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    features, labels = clouds()
    with pytest.raises(ValueError, match=message):
        judge(**{"features": features, "labels": labels, **change})
