"""Hold-outs, k-NN and intervals that treat a group of images as one."""

import numpy as np
import pytest

from omma.evaluation import confidence, knn, leakage, split


def sequences(groups=30, each=10, seed=0):
    """Correct answers that are alike within a group: all right, or all wrong but for one."""
    rng = np.random.default_rng(seed)
    right = np.repeat(rng.random(groups) < 0.6, each)
    right[0] = ~right[0]
    return right, np.repeat(np.arange(groups), each)


def test_intervals_by_group_are_those_of_resampled_groups():
    correct, codes = sequences()
    low, high = confidence.bootstrap(correct, groups=codes)
    rng = np.random.default_rng(1)
    sums = correct.reshape(30, 10).sum(1)
    plain = [sums[rng.integers(30, size=30)].sum() / 300 for _ in range(20_000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.006)
    image_low, image_high = confidence.bootstrap(correct)
    assert high - low > 2.5 * (image_high - image_low)  # sqrt(10), were groups all alike


def test_intervals_by_group_cover():
    """Of 200 draws with 40 groups of one share each, the interval covers the truth in about 95 %."""
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        shares = np.repeat(rng.choice([0.4, 0.9], 40), 8)
        low, high = confidence.bootstrap(
            rng.random(320) < shares, trial, rounds=1000, groups=np.arange(320) // 8
        )
        covered += low <= 0.65 <= high
    assert 180 <= covered <= 199


def test_groups_of_one_image_are_images():
    correct = np.random.default_rng(0).random(400) < 0.7
    alone = np.arange(400)
    assert confidence.bootstrap(correct, groups=alone) == pytest.approx(
        confidence.bootstrap(correct), abs=0.004
    )
    other = np.roll(correct, 7)
    by_group = confidence.paired(correct, other, groups=alone)
    assert by_group == pytest.approx(confidence.paired(correct, other), abs=0.004)
    values = np.random.default_rng(1).normal(size=400)
    assert confidence.mean(values, groups=alone) == pytest.approx(confidence.mean(values))
    labels = np.arange(400) % 3
    hits, sizes = np.bincount(labels[correct]), np.bincount(labels)
    balanced = confidence.balanced_by_group(correct, labels, alone)
    assert balanced == pytest.approx(confidence.balanced(hits, sizes), abs=0.012)


def test_open_ends_count_groups():
    codes = np.repeat(np.arange(6), 10)
    labels = codes % 2  # three groups each
    every = np.ones(60, bool)
    assert confidence.bootstrap(every, groups=codes) == pytest.approx((0.025 ** (1 / 6), 1.0))
    assert confidence.balanced_by_group(every, labels, codes) == pytest.approx((0.025 ** (1 / 3), 1.0))
    assert confidence.paired(every, every, groups=codes) == (0, 0)


def test_of_one_group_nothing_is_known():
    correct, codes = np.arange(10) < 6, np.zeros(10, int)
    assert confidence.bootstrap(correct, groups=codes) == (0, 1)
    assert confidence.paired(correct, ~correct, groups=codes) == (-1, 1)
    assert confidence.mean(correct.astype(float), groups=codes) == (-np.inf, np.inf)


def test_paired_by_group_is_wider_where_groups_are_alike():
    codes = np.repeat(np.arange(20), 10)
    rng = np.random.default_rng(0)
    a, b = (np.repeat(rng.random(20) < p, 10) for p in (0.9, 0.5))
    low, high = confidence.paired(a, b, groups=codes)
    image_low, image_high = confidence.paired(a, b)
    assert high - low > 2.5 * (image_high - image_low)
    assert low <= (a.mean() - b.mean()) <= high


# ---------------------------------------------------------------- hold-outs
def test_holdouts_and_folds_put_no_group_on_both_sides():
    labels, codes = np.arange(200) % 4, np.arange(200) // 8
    for pairs in (split.holdouts(labels, 0, groups=codes), split.folds(labels, 0, groups=codes)):
        assert len(pairs) == 5
        for fit, held_out in pairs:
            assert not set(codes[fit]) & set(codes[held_out])
            assert set(labels[fit]) == set(labels[held_out]) == {0, 1, 2, 3}
            assert sorted([*fit, *held_out]) == list(range(200))
    every = np.concatenate([held_out for _, held_out in split.folds(labels, 0, groups=codes)])
    assert sorted(every) == list(range(200))  # each once


def test_folds_keep_the_only_group_of_a_class():
    labels, codes = np.array([0, 0, 1, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 3, 4, 5])
    held_out = np.concatenate([h for _, h in split.folds(labels, 0, groups=codes)])
    assert sorted(held_out) == [2, 3, 4, 5, 6]


def test_nothing_to_hold_out():
    with pytest.raises(ValueError, match="no class has train images in two groups"):
        split.holdouts(np.array([0, 0, 1, 1]), 0, groups=np.array([0, 0, 1, 1]))


# ---------------------------------------------------------------- k-NN
def test_leave_one_out_leaves_the_group_out():
    """Frames of a group are alike; labels do not depend on what images look like."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(40), 6)
    vectors = (rng.normal(size=(40, 16))[codes] + 0.01 * rng.normal(size=(240, 16))).astype(np.float32)
    labels = rng.integers(2, size=40)[codes]
    by_image = knn.predict(vectors, labels, None, k=5) == labels
    by_group = knn.predict(vectors, labels, None, k=5, groups=codes)
    assert by_image.all()
    assert (by_group == labels).mean() < 0.75
    for i in range(0, 240, 37):
        others = codes != codes[i]
        assert by_group[i] == knn.predict(vectors[others], labels[others], vectors[i : i + 1], k=5)[0]


def test_leave_one_out_with_fewer_others_than_k():
    vectors, labels = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
    answers = knn.predict(vectors, labels, None, k=20, groups=np.array([0, 0, 1, 1]))
    assert answers.tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="one group"):
        knn.predict(vectors, labels, None, groups=np.zeros(4, int))


# ---------------------------------------------------------------- leakage
def test_leakage_by_what_a_label_is():
    """Frames are near copies: labels of whole groups leak, labels within a group mislead the vote."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(40), 24)
    vectors = (rng.normal(size=(40, 32))[codes] + 0.01 * rng.normal(size=(960, 32))).astype(np.float32)
    _, test = split.stratified(codes % 2, 0.2, 0, codes)
    is_test = np.isin(np.arange(960), test)
    whole = leakage.measure(vectors, rng.permutation(40)[codes] % 2, codes, is_test, "film")
    assert whole is not None
    assert (whole.leaking, whole.by_image.value) == (1, 1)
    assert whole.by_group.value < 0.9
    assert whole.sentence().startswith("a split by image would leak: k-NN (k=20) would read 100.0%")
    # most frames of the own group have the other label
    labels = np.where(np.tile(np.arange(24) < 20, 40), 0, 1)
    within = leakage.measure(vectors, labels, codes, is_test, "film")
    assert within is not None
    assert within.by_image.value <= within.by_group.value
    assert "would not read more" in within.sentence()


def test_nothing_leaks_where_each_image_is_a_group():
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2
    assert leakage.measure(vectors, labels, np.arange(60), np.arange(60) % 5 == 0, "film") is None


def test_a_named_split_that_leaks_is_not_mended_by_the_option():
    """`--group` leaves parts that the user named as they are, so the sentence does not advise it."""
    rng = np.random.default_rng(0)
    codes = np.arange(120) % 12
    vectors, is_test = rng.normal(size=(120, 4)).astype(np.float32), np.arange(120) >= 60
    for named in (False, True):
        found = leakage.measure(vectors, codes % 2, codes, is_test, "film", "tested on site=b", named)
        assert found is not None
        assert ("which --group film makes" in found.sentence()) != named
        assert found.to_json()["named"] == named
