"""Wrong labels: confident learning's closed forms, out-of-fold probabilities alone, copies on one side."""

import numpy as np
import pytest

from omma.curation import mislabelled
from omma.evaluation import linear


def blobs(n=60, k=4, d=64, spread=0.5, seed=0):
    """n images of each of k classes around orthogonal centres, in an order that says nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(k), n))
    noise = 2 * spread * rng.normal(size=(n * k, d)) / np.sqrt(d)
    return (np.eye(d)[labels] + noise).astype(np.float32), labels


def flipped(labels, share, seed=0):
    rng = np.random.default_rng(seed)
    k, wrong = labels.max() + 1, rng.permutation(len(labels))[: round(share * len(labels))]
    given = labels.copy()
    given[wrong] = (labels[wrong] + rng.integers(1, k, len(wrong))) % k
    return given, given != labels


# ---------------------------------------------------------------- confident learning
def test_an_image_counts_under_the_likeliest_class_that_reaches_its_own_mean():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    labels = np.array([0, 0, 0, 1, 1])
    # t_0 = (.9 + .7 + .2) / 3 = .6, t_1 = (.4 + .9) / 2 = .65
    assert mislabelled.confident_class(probabilities, labels).tolist() == [0, 0, 1, 0, 1]
    probabilities[3] = 0.55, 0.45  # t_1 = .675: the fourth reaches neither
    assert mislabelled.confident_class(probabilities, labels).tolist() == [0, 0, 1, -1, 1]
    assert mislabelled.issues(probabilities, labels).tolist() == [False, False, True, False, False]


def test_a_class_without_images_has_no_threshold():
    probabilities = np.array([[0.3, 0.6, 0.1], [0.2, 0.1, 0.7], [0.3, 0.1, 0.6]])
    # t_0 = .3, t_2 = .65: the likeliest class of the first has none, and the third reaches t_0 alone
    assert mislabelled.confident_class(probabilities, np.array([0, 2, 2])).tolist() == [0, 2, 0]


def test_the_likeliest_label_is_never_an_issue():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5), 400)
    labels = rng.integers(0, 5, 400)
    flagged = mislabelled.issues(probabilities, labels)
    assert flagged.any()
    assert (probabilities.argmax(1) != labels)[flagged].all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_confident_joint_is_that_of_cleanlab(seed):
    cleanlab = pytest.importorskip("cleanlab.count", reason="cleanlab (dev group) is not installed")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(4), 75))
    probabilities = rng.dirichlet(np.full(4, 0.4), 300)
    probabilities[np.arange(300), labels] += 0.4
    probabilities /= probabilities.sum(1, keepdims=True)
    counted = mislabelled.confident_class(probabilities, labels)
    ours = np.zeros((4, 4), int)
    np.add.at(ours, (labels[counted >= 0], counted[counted >= 0]), 1)
    theirs = cleanlab.compute_confident_joint(labels, probabilities, calibrate=False)
    assert (ours == theirs).all()
    number = cleanlab.num_label_issues(labels, probabilities, estimation_method="off_diagonal")
    flagged = mislabelled.issues(probabilities, labels)
    given = probabilities[np.arange(300), labels]
    assert flagged.sum() == number
    unlikely = probabilities.argmax(1) != labels
    assert given[flagged].max() <= given[unlikely & ~flagged].min()


# ---------------------------------------------------------------- planted errors
def test_flipped_labels_are_found_and_the_true_class_is_suggested():
    x, labels = blobs()
    given, wrong = flipped(labels, 0.1)
    found = mislabelled.find(x, given)
    assert found.rows.tolist() == list(range(len(x)))
    order = np.argsort(found.confidence)
    assert wrong[order[: wrong.sum()]].mean() >= 0.95
    assert wrong[found.flagged].mean() >= 0.9
    assert found.flagged[wrong].mean() >= 0.7
    assert (found.suggested == labels)[found.flagged & wrong].mean() == 1
    assert (found.confidence <= found.probability).all()
    assert not found.by_neighbours.any()
    assert mislabelled.find(x, labels).flagged.mean() <= 0.01


def test_a_probe_that_has_seen_the_labels_would_miss_what_is_found_out_of_fold():
    x, labels = blobs(30, d=256, spread=1.4)  # any labels can be learned by heart in so many dimensions
    given, wrong = flipped(labels, 0.15)
    targets = linear.one_hot(given, 4)
    learned = linear.fit(x, targets, {"solver": "lbfgs", "penalty": 1e-5})(x)
    assert (learned.argmax(1) == given).all(), "in-sample, every wrong label looks right"
    found = mislabelled.find(x, given)
    assert (found.suggested != given)[wrong].mean() >= 0.7
    assert wrong[np.argsort(found.confidence)[: wrong.sum()]].mean() >= 3 * wrong.mean()


def test_no_image_is_judged_by_a_probe_that_was_fitted_on_it(monkeypatch):
    x, labels = blobs(12)
    seen, fit = [], linear.fit

    def spy(features, targets, settings, **options):
        linear_map = fit(features, targets, settings, **options)
        fitted = {row.tobytes() for row in features}

        def judge(asked):
            seen.append(not fitted & {row.tobytes() for row in asked})
            return linear_map(asked)

        return judge

    monkeypatch.setattr(linear, "fit", spy)
    mislabelled.find(x, labels)
    assert seen == [True] * mislabelled.FOLDS


def test_copies_never_straddle_folds():
    x, labels = blobs(30)
    groups = np.arange(len(x))
    for first in range(0, 60, 4):
        groups[first : first + 3] = first  # of several labels, too
    pairs = mislabelled.grouped_folds(labels, groups, seed=3)
    assert len(pairs) == mislabelled.FOLDS
    held_out = np.concatenate([rows for _, rows in pairs])
    assert np.sort(held_out).tolist() == list(range(len(x)))
    for fit, rows in pairs:
        assert not set(groups[fit]) & set(groups[rows])
        assert len(fit) + len(rows) == len(x)


def test_a_wrong_label_that_its_copies_share_is_found_with_groups_alone():
    x, labels = blobs(40, spread=1.0)
    given, groups = labels.copy(), np.arange(len(x))
    victims = np.flatnonzero(labels == 0)[:8]
    x, given = np.concatenate([x, *[x[victims]] * 6]), np.concatenate([given, *[given[victims]] * 6])
    copies = np.concatenate([victims, np.arange(len(labels), len(x))])
    groups = np.concatenate([groups, *[victims] * 6])
    given[copies] = 1  # 8 images in 7 copies each, all with one wrong label
    apart, together = (mislabelled.find(x, given, each).confidence[copies].mean() for each in (None, groups))
    assert together < 0.5 < apart


# ---------------------------------------------------------------- few images
def test_classes_with_too_few_images_are_judged_by_neighbours():
    x, labels = blobs(30)
    given = labels.copy()
    rare = np.flatnonzero(labels == 0)[:3]
    own = np.eye(64)[40] + 0.02 * np.random.default_rng(0).normal(size=(2, 64))
    x[np.flatnonzero(labels == 1)[:2]] = own  # two images that are alike and far from all others
    given[rare] = 4  # three images of class 0 under a label that hardly any other image has
    given[np.flatnonzero(labels == 1)[:2]] = 5  # a small class that is one
    found = mislabelled.find(x, given)
    assert set(np.flatnonzero(found.by_neighbours)) == {*rare, *np.flatnonzero(labels == 1)[:2]}
    assert found.flagged[rare].all()
    assert (found.suggested[rare] == 0).all()
    assert "2 classes have fewer than 5" in found.notes[0]
    assert "(5 images)" in found.notes[0]


def test_neighbours_vote_with_one_voice_a_group_and_not_for_themselves():
    x = np.array([[1, 0], [1, 0], [1, 0.1], [1, 0.2], [0, 1]], np.float32)
    labels, groups = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2])
    shares = mislabelled.neighbours_vote(x, labels, groups, np.array([0, 4]), 3, k=2)
    assert shares.tolist() == [[0, 0.5, 0.5], [0.5, 0.5, 0]]


def test_all_classes_too_small_for_folds_leave_neighbours_alone():
    x, labels = blobs(3)
    found = mislabelled.find(x, labels)
    assert found.by_neighbours.all()
    assert len(found.rows) == 12


def test_unlabelled_images_are_left_out_and_numbers_of_labels_may_have_gaps():
    x, labels = blobs(20)
    given = np.where(np.arange(len(x)) % 5 == 0, -1, 10 * labels)
    found = mislabelled.find(x, given)
    assert found.rows.tolist() == np.flatnonzero(given >= 0).tolist()
    assert set(found.classes) <= {0, 10, 20, 30}
    assert set(found.suggested) <= {0, 10, 20, 30}


def test_one_label_is_refused_in_a_line():
    x, labels = blobs(5)
    with pytest.raises(ValueError, match="at least two classes"):
        mislabelled.find(x, np.where(labels == 0, 0, -1))


def test_the_answer_depends_on_the_seed_alone():
    x, labels = blobs(15)
    given, _ = flipped(labels, 0.1)
    one, two, other = (mislabelled.find(x, given, seed=seed).confidence for seed in (0, 0, 1))
    assert (one == two).all()
    assert (one != other).any()


# ---------------------------------------------------------------- several labels an image
def test_with_several_labels_an_image_each_class_is_judged_by_itself():
    rng = np.random.default_rng(0)
    sets = (rng.random((240, 3)) < 0.4).astype(np.int8)
    x = (sets @ np.eye(3, 24) * 2 - 1 + 0.3 * rng.normal(size=(240, 24))).astype(np.float32)
    given = sets.copy()
    given[:6, 1] = 1 - given[:6, 1]  # three and more of either kind
    given[200:205] = -1  # without labels
    given[100, 2] = -1  # not known
    found = mislabelled.find_sets(x, given)
    flagged = {(int(row), int(k)) for row, k in zip(found.rows[found.flagged], found.classes[found.flagged])}
    assert flagged <= {(row, 1) for row in range(6)}
    assert len(flagged) >= 3
    own = found.classes == 1
    assert sorted(found.rows[own][np.argsort(found.confidence[own])[:6]]) == list(range(6))
    at = found.flagged
    assert (found.suggested[at] == sets[found.rows[at], found.classes[at]]).all()
    assert not set(range(200, 205)) & set(found.rows)
    assert (100, 2) not in set(zip(found.rows, found.classes))
    assert (found.confidence[at] < 0.5).all()


def test_a_class_with_few_images_on_a_side_is_named_and_not_judged():
    rng = np.random.default_rng(0)
    sets = (rng.random((60, 2)) < 0.5).astype(np.int8)
    sets[:, 1] = 0
    sets[:4, 1] = 1
    found = mislabelled.find_sets(rng.normal(size=(60, 8)).astype(np.float32), sets)
    assert set(found.classes) == {0}
    assert "1 class with fewer than 5" in found.notes[0]
