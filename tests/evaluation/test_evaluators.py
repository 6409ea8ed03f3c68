"""Every evaluator: closed forms, references, and that the test part stays unseen."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import nn

from omma.data.sources import label_sets
from omma.evaluation import average_precision, confidence, knn, linear, ridge, split
from omma.evaluation.score import Score, classification_fields
from omma.evaluation.split import Split


@pytest.fixture(autouse=True)
def one_thread():
    """Arrays this small lose by threads, and a busy machine makes them wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def blobs(classes=3, train=40, test=15, dim=8, gap=4.0, seed=0) -> Split:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, dim)) * gap
    y, z = np.repeat(np.arange(classes), train), np.repeat(np.arange(classes), test)
    x, w = (centres[i] + rng.normal(size=(len(i), dim)) for i in (y, z))
    return Split(x.astype(np.float32), y, w.astype(np.float32), z)


PROBES = {
    "knn": lambda data: knn.predict_each(data)[20],
    "lbfgs": lambda data: linear.predict(data, solver="lbfgs").predictions,
    "sgd": lambda data: linear.predict(data, solver="sgd").predictions,
    "ridge": lambda data: ridge.predict(data).predictions,
}
probes = pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)


@probes
def test_separable_classes_are_all_found(probe):
    data = blobs(gap=8)
    assert (probe(data) == data.test_labels).all()


@probes
def test_random_labels_are_at_chance(probe):
    data = blobs(classes=4, train=60, test=250, gap=0)
    assert 0.2 < (probe(data) == data.test_labels).mean() < 0.3


@pytest.mark.parametrize(
    "answer",
    [
        lambda data: knn.answers(data)[20],
        lambda data: linear.predict(data, solver="lbfgs"),
        lambda data: linear.predict(data, solver="sgd"),
        ridge.predict,
    ],
    ids=PROBES,
)
def test_the_answer_is_the_class_of_the_largest_score(answer):
    """Class 1 has no train image, class 5 none but in the test part."""
    data = blobs(classes=5, gap=0.7)
    rows = data.train_labels != 1
    data = Split(data.train[rows], data.train_labels[rows], data.test, data.test_labels)
    data.test_labels[0] = 5
    found = answer(data)
    assert found.scores.shape == (75, 6)
    assert (found.scores.argmax(1) == found.predictions).all()
    assert not np.isin(found.predictions, (1, 5)).any()
    if found.probabilities:
        assert found.scores.sum(1) == pytest.approx(np.ones(75), abs=1e-5)


@probes
@pytest.mark.parametrize(("classes", "train", "test"), [(2, 48, 12), (200, 16, 4)])
def test_few_images_a_class(probe, classes, train, test):
    data = blobs(classes, train, test, dim=32, gap=3)
    assert (probe(data) == data.test_labels).mean() > 0.95


@probes
def test_the_test_labels_change_nothing(probe):
    data = blobs()
    other = data._replace(test_labels=np.random.default_rng(0).permutation(data.test_labels))
    assert (probe(data) == probe(other)).all()


@probes
def test_answers_do_not_depend_on_the_other_test_images(probe):
    data = blobs(gap=1.5)
    few = data._replace(test=data.test[:7], test_labels=data.test_labels[:7])
    assert (probe(data)[:7] == probe(few)).all()


@probes
def test_collapsed_features_are_judged_not_refused(probe):
    data = blobs()
    data = data._replace(train=np.ones_like(data.train), test=np.ones_like(data.test))
    assert (probe(data) == data.test_labels).mean() == pytest.approx(1 / 3)


@probes
def test_what_cannot_be_judged_is_refused_in_one_line(probe):
    data = blobs()
    broken = data.train.copy()
    broken[3] = np.nan
    for wrong, words in (
        (data._replace(train_labels=np.zeros_like(data.train_labels)), "two classes"),
        (data._replace(test=data.test[:0], test_labels=data.test_labels[:0]), "no labelled images"),
        (data._replace(test_labels=data.test_labels - 1), "no label"),
        (data._replace(train=broken), "not finite"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            probe(wrong)
        assert "\n" not in str(caught.value)


def test_knn_equals_the_vote_written_out():
    data = blobs(gap=0.7, dim=5)
    ours = knn.predict_each(data, ks=(1, 7, 20), temperature=0.07)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (data.train, data.test)]
    for k, answers in ours.items():
        for query, answer in zip(unit[1], answers):
            cosine = unit[0] @ query
            votes = np.zeros(3)
            for i in np.argsort(-cosine, kind="stable")[:k]:
                votes[data.train_labels[i]] += np.exp(cosine[i] / 0.07)
            assert votes.argmax() == answer


def test_knn_agrees_with_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    data = blobs(gap=0.7)
    vote = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    theirs = vote.fit(data.train, data.train_labels).predict(data.test)
    assert (knn.predict_each(data)[20] == theirs).all()


def test_knn_ties_go_to_the_first_of_the_bank():
    train = np.repeat(np.eye(2, dtype=np.float32), 50, axis=0)
    data = Split(train, np.arange(100) % 5, np.eye(2, dtype=np.float32), np.array([0, 0]))
    assert knn.predict_each(data, ks=(1, 3))[1].tolist() == [0, 0]  # images 0 and 50, both of class 0
    shifted = data._replace(train_labels=(np.arange(100) + 3) % 5)
    assert knn.predict_each(shifted, ks=(1,))[1].tolist() == [3, 3]


def test_knn_that_leaves_one_out():
    data = blobs(gap=0.7)
    x, y = data.train, data.train_labels
    for k in (1, 20, 10_000):
        found = knn.predict(x, y, None, k=k)
        for i in range(0, len(x), 7):
            others = np.arange(len(x)) != i
            assert found[i] == knn.predict(x[others], y[others], x[i : i + 1], k=k)[0]
    assert knn.predict(x[:2], np.array([0, 1]), None).tolist() == [1, 0]


def test_knn_of_one_k_is_that_of_many_and_never_refuses():
    data = blobs(gap=0.7)
    one = knn.predict(data.train, data.train_labels, data.test, k=7)
    assert (one == knn.predict_each(data, ks=(7, 20))[7]).all()
    assert (
        len(knn.predict(np.full((3, 2), np.nan, np.float32), np.zeros(3, np.int64), data.test[:, :2])) == 45
    )


def test_k_is_capped_at_the_bank():
    assert knn.capped((10, 20, 100, 200), 64) == (10, 20, 64)
    assert knn.capped((10, 20), 4) == (4,)
    with pytest.raises(ValueError, match="k=0"):
        knn.capped((0,), 4)


@pytest.mark.parametrize(
    ("images", "loss", "most"),
    [(300, "softmax", 100), (300, "sigmoid", 100), (300, "hinge", 100), (40, "softmax", 300)],
)
def test_correlated_features_cost_few_steps(images, loss, most, monkeypatch):
    """Raw pixels are so: neighbours are nearly equal. By W itself, 300 images take 287 to 947 calls."""
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(images, 64)), 1) @ np.linalg.qr(rng.normal(size=(64, 64)))[0]
    x, y = smooth.astype(np.float32), (smooth[:, :2] + rng.normal(size=(images, 2)) > 0) @ [1, 2]
    y[:4] = range(4)
    targets, penalty, calls = linear.one_hot(y, 4), 1e-4, []
    counted = linear._loss
    monkeypatch.setattr(linear, "_loss", lambda *a: (calls.append(0), counted(*a))[1])
    (found,) = linear._lbfgs_path(x, targets, [penalty], loss=loss)
    assert len(calls) < most
    z = torch.from_numpy((x - found.mean) * found.scale).double()
    weight, bias = (torch.from_numpy(w).double().requires_grad_() for w in (found.weight, found.bias))
    losses = counted(z @ weight.T + bias, torch.from_numpy(targets).double(), loss)[0]
    (losses.sum(1).mean() + penalty / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 5e-4
    assert bias.grad.abs().max() < 1e-4


def test_features_of_a_collapsed_network_have_a_probe():
    """All dimensions alike: the curvature has one direction, and rounding makes others negative."""
    line = np.random.default_rng(0).normal(size=(1200, 1)).astype(np.float32)
    x, y = np.repeat(line, 1024, 1), (line[:, 0] > 0).astype(np.int64)
    (found,) = linear._lbfgs_path(x, linear.one_hot(y, 2), [1e-5], loss="hinge")
    assert (found(x).argmax(1) == y).mean() > 0.98


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("penalty", [1.0, 1e-2])
def test_lbfgs_minimises_the_loss_written_out(classes, penalty):
    """Few images of the last class, so that predictions depend on the strength of the penalty."""
    data = blobs(classes, train=60, test=200, gap=0.5, dim=12)
    rows = data.train_labels < classes - 1
    rows |= np.arange(len(rows)) % 4 == 0
    x, w = split.standardise(data.train[rows], data.test)
    y = data.train_labels[rows]
    features, targets = torch.from_numpy(x).double(), torch.from_numpy(y)

    def loss(flat):
        weight = torch.from_numpy(flat).view(13, classes).requires_grad_()
        logits = features @ weight[:-1] + weight[-1]
        value = nn.functional.cross_entropy(logits, targets) + penalty / 2 * weight[:-1].square().sum()
        value.backward()
        return value.item(), weight.grad.numpy().ravel()

    best = minimize(loss, np.zeros(13 * classes), jac=True, method="BFGS", tol=1e-8).x.reshape(13, classes)
    (found,) = linear._lbfgs_path(data.train[rows], linear.one_hot(y, classes), [penalty])
    logits = w @ best[:-1] + best[-1]
    assert (found(data.test).argmax(1) == logits.argmax(1)).mean() > 0.995
    expected, ours = (torch.from_numpy(z).softmax(1).numpy() for z in (logits, found(data.test)))
    assert np.abs(ours - expected).max() < 0.01
    weight, bias = found.folded()
    assert np.allclose(data.test @ weight.T + bias, found(data.test), atol=1e-4)


def test_the_solver_goes_by_size():
    data = blobs()
    assert linear.predict(data).settings["solver"] == "lbfgs"
    assert data.train.size * data.classes < linear.SMALL < 1_000_000 * 384 * 1000


def test_both_solvers_reach_the_same_accuracy():
    data = blobs(classes=10, train=150, test=100, gap=0.8, dim=24)
    a, b = (linear.predict(data, solver=s).predictions == data.test_labels for s in ("lbfgs", "sgd"))
    assert abs(a.mean() - b.mean()) < 0.03


@pytest.mark.parametrize("dim", [12, 400])  # fewer and more dimensions than images
def test_ridge_agrees_with_scikit_learn(dim):
    from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV

    data = blobs(classes=4, train=30, test=40, gap=1.0, dim=dim)
    answer = ridge.predict(data)
    x, w = (a.astype(np.float64) for a in split.standardise(data.train, data.test))
    theirs = RidgeClassifier(alpha=answer.settings["penalty"] * len(x)).fit(x, data.train_labels)
    assert (theirs.predict(w) == answer.predictions).all()
    alphas = [p * len(x) for p in ridge.PENALTIES]
    reference = RidgeClassifierCV(alphas=alphas).fit(x, data.train_labels)  # leave-one-out of its own
    best = (reference.predict(w) == data.test_labels).mean()
    assert (answer.predictions == data.test_labels).mean() > best - 0.05


def test_ridge_leave_one_out_is_what_leaving_one_out_gives():
    data = blobs(classes=3, train=8, test=2, gap=0.8, dim=6)
    answer = ridge.predict(data)
    x = split.standardise(data.train)[0].astype(np.float64)
    y = np.eye(3)[data.train_labels]
    right, penalty = 0, answer.settings["penalty"] * len(x)
    for i in range(len(x)):
        rest = np.delete(np.arange(len(x)), i)
        mean, offset = x[rest].mean(0), y[rest].mean(0)
        centred = x[rest] - mean
        weight = np.linalg.solve(centred.T @ centred + penalty * np.eye(6), centred.T @ (y[rest] - offset))
        right += ((x[i] - mean) @ weight + offset).argmax() == data.train_labels[i]
    assert answer.settings["held_out_top1"] == pytest.approx(right / len(x), abs=1e-4)


def test_holdouts_are_stratified_disjoint_and_seeded():
    labels = np.array([0] * 10 + [1] * 30 + [2])
    pairs = split.holdouts(labels, seed=3)
    assert len(pairs) == 5
    for fit, held in pairs:
        assert sorted([*fit, *held]) == list(range(41))
        assert np.bincount(labels[held], minlength=3).tolist() == [2, 6, 0]
    again = split.holdouts(labels, seed=3)
    assert all((a[1] == b[1]).all() for a, b in zip(pairs, again))
    assert len(split.holdouts(np.arange(2000) % 2, seed=0)) == 1
    with pytest.raises(ValueError, match="no class has two"):
        split.holdouts(np.arange(5), seed=0)


def test_standardise_ignores_constants_and_the_test_part():
    x = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    x[:, 1] = 7
    fit, other = split.standardise(x, x * 100)
    assert np.allclose(fit.mean(0), 0, atol=1e-5)
    assert np.allclose(fit.std(0), [1, 0, 1, 1], atol=1e-5)
    assert (other[:, 1] == 0).all()


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        low, high = confidence.bootstrap(rng.random(400) < 0.7, seed=trial, rounds=1000)
        inside += low <= 0.7 <= high
    assert 0.91 < inside / 300 < 0.985


def test_interval_equals_plain_resampling():
    correct = np.random.default_rng(0).random(200) < 0.6
    index = np.random.default_rng(1).integers(0, 200, (10_000, 200))
    plain = np.quantile(correct[index].mean(1), [0.025, 0.975])
    assert confidence.bootstrap(correct) == pytest.approx(tuple(plain), abs=0.006)
    assert confidence.bootstrap(correct, seed=5) == confidence.bootstrap(correct, seed=5)


def test_interval_of_all_right_is_not_certainty():
    assert confidence.bootstrap(np.ones(24, bool)) == pytest.approx((0.025 ** (1 / 24), 1.0))
    assert confidence.bootstrap(np.zeros(24, bool))[0] == 0


def test_paired_interval():
    rng = np.random.default_rng(0)
    a = rng.random(500) < 0.7
    b = a & (rng.random(500) < 0.95)  # never right where a is wrong
    low, high = confidence.paired(a, b)
    assert 0 < low < a.mean() - b.mean() < high
    assert confidence.paired(a, a) == (0, 0)


def test_scores_by_hand():
    (fields,) = classification_fields(
        np.array([0, 0, 1, 1, 0]), np.array([0, 0, 0, 1, 1]), np.array([0, 0, 2])
    )
    assert fields["value"] == 0.6
    assert fields["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert fields["majority"] == 0.6
    assert (fields["classes"], fields["n_train"], fields["n_test"]) == (3, 3, 5)
    score = Score(subject="trained", protocol="linear", crop="c", split="s", seed=0, **fields)
    assert "k" not in score.to_json()
    assert score.to_json()["interval95"] == list(score.interval95)


def test_the_constant_floor_is_that_of_the_test_part():
    """The train part's largest class, 2, is rare in the test part, where 1 is the largest."""
    test = np.array([0] * 2 + [1] * 6 + [2] * 2)
    top1, balanced = classification_fields(np.full(10, 1), test, np.array([2, 2, 2, 0, 1]))
    assert (top1["value"], top1["majority"]) == (0.6, 0.6)
    assert (balanced["metric"], balanced["value"]) == ("balanced_accuracy", pytest.approx(1 / 3))
    assert balanced["majority"] == pytest.approx(1 / 3)
    low, high = balanced["interval95"]
    assert low == high == pytest.approx(1 / 3)  # each class is wholly right or wholly wrong


def test_the_interval_of_balanced_accuracy_covers_the_truth():
    """Of resampled answers whose true balanced accuracy is known, 95 % of intervals hold it."""
    rng, sizes, share = np.random.default_rng(0), np.array([200, 20, 50]), np.array([0.9, 0.5, 0.7])
    inside = 0
    for _ in range(100):
        low, high = confidence.balanced(rng.binomial(sizes, share), sizes)
        inside += low <= share.mean() <= high
    assert 88 <= inside <= 99
    assert confidence.balanced(np.zeros(3, int), sizes)[0] == 0
    assert 0.1 < confidence.balanced(np.zeros(3, int), sizes)[1] < 0.2  # 0 of 20 in the smallest class


def several(m, seed=0):
    """Features with a dimension for each of three classes, and some labels that are not known."""
    rng = np.random.default_rng(seed)
    sets = (rng.random((m, 3)) < 0.4).astype(np.int64)
    x = np.concatenate([2.0 * sets + 0.3 * rng.normal(size=(m, 3)), rng.normal(size=(m, 2))], 1)
    sets[rng.random((m, 3)) < 0.1] = -1
    return x.astype(np.float32), sets


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_probes_of_several_labels(probe):
    (x, sets), (w, truth) = several(300), several(200, seed=1)
    if probe == "linear":
        scores = linear.predict_sets(x, sets, label_sets.strata(sets.astype(np.int8)), w).scores
    else:
        scores = knn.shares_of_sets(x, sets, w)[1]
    assert average_precision.mean_average_precision(scores, truth) > 0.97
    assert torch.is_grad_enabled()
    known = truth >= 0
    assert ((scores > 0.5) == truth)[known].mean() > 0.93
    assert (scores >= 0).all() and (scores <= 1).all()  # noqa: PT018


def test_the_probe_of_several_labels_minimises_its_loss():
    """Without unknown labels each class is a binary logistic regression."""
    x, sets = several(300)
    sets = abs(sets)
    found = linear.fit(x, sets.astype(np.float32), {"solver": "lbfgs", "penalty": 0.01}, loss="sigmoid")
    scores = torch.from_numpy(found(x)).sigmoid().numpy()
    (x,) = split.standardise(x)
    for k in range(3):
        model = LogisticRegression(C=1 / (0.01 * 300), max_iter=1000, tol=1e-8).fit(x, sets[:, k])
        assert np.abs(scores[:, k] - model.predict_proba(x)[:, 1]).max() < 1e-3


def test_unknown_labels_do_not_vote():
    bank = np.eye(3, dtype=np.float32)[[0, 0, 0, 1]]
    sets = np.array([[1, -1], [0, -1], [-1, 1], [1, 0]])
    k, shares = knn.shares_of_sets(bank, sets, bank[:1], k=3)
    assert k == 3
    assert shares[0] == pytest.approx([0.5, 1.0])


def test_with_one_scale_for_all_dimensions_a_rotation_changes_nothing():
    """The L2 penalty does not see rotations; a scale for each dimension does."""
    data = blobs(gap=0.4, dim=6)
    stretched = data.train * np.array([1, 3, 0.2, 1, 1, 5], np.float32)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0].astype(np.float32)
    targets, chosen = linear.one_hot(data.train_labels, 3), {"solver": "lbfgs", "penalty": 0.1}
    logits = {}
    for common in (True, False):
        plain, turned = (
            linear.fit(x, targets, chosen, common=common)(x) for x in (stretched, stretched @ turn)
        )
        logits[common] = np.abs(plain - turned).max()
    assert logits[True] < 1e-3
    assert logits[False] > 0.05
    wide = np.concatenate([stretched, np.zeros((120, 200), np.float32)], 1)  # fewer images than dimensions
    found = linear.fit(wide, targets, chosen, common=True)
    same = linear.fit(stretched, targets, chosen, common=True)
    # the root mean square of the deviations counts constant dimensions
    assert found.scale[0] == pytest.approx(same.scale[0] * np.sqrt(206 / 6), rel=1e-5)
    constant = np.ones((5, 2), np.float32)
    assert split.scaling(constant, common=True)[1].tolist() == [0, 0]
