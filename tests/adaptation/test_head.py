"""`--adapt head`: its classifiers beside scikit-learn's, its folder, and few, uneven and several labels."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from omma import backbones, weights
from omma.adaptation import floors, head, head_fit
from omma.core.protocols import Preprocess
from omma.data.sources.collection import ArrayImages
from omma.evaluation import linear, split
from omma.pretraining.folder import RunFolder
from omma.weights import Model

PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)


def blobs(n=60, k=3, d=8, gap=3.0, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return (rng.normal(size=(k, d))[y] * gap + rng.normal(size=(n, d))).astype(np.float32), y


def test_sigmoid_is_one_against_the_rest_and_weights_are_those_of_scikit_learn():
    x, y = blobs(gap=0.5)
    targets = linear.one_hot(y, 3)
    standard = split.standardise(x)[0]
    positive = np.array([1.0, 2.0, 3.0], np.float32)
    ours = linear.fit(x, targets, {"solver": "lbfgs", "penalty": 0.1}, loss="sigmoid", weights=positive)
    softmax = linear.fit(x, targets, {"solver": "lbfgs", "penalty": 0.1}, weights=positive)
    for c in range(3):
        each = np.where(y == c, positive[c], 1.0)
        theirs = LogisticRegression(C=1 / (0.1 * each.sum()), tol=1e-8).fit(standard, y == c, each)
        assert np.allclose(ours.weight[c], theirs.coef_[0], atol=2e-3)
    each = positive[y]
    theirs = LogisticRegression(C=1 / (0.1 * each.sum()), tol=1e-8).fit(standard, y, each)
    assert np.allclose(softmax.weight, theirs.coef_, atol=2e-3)


def test_the_hinge_minimises_the_loss_written_out():
    x, y = blobs(gap=0.5)
    found = linear.fit(x, linear.one_hot(y, 3), {"solver": "lbfgs", "penalty": 0.1}, loss="hinge")
    inputs = torch.from_numpy(split.standardise(x)[0]).double()
    weight = torch.from_numpy(found.weight).double().requires_grad_()
    sign = torch.from_numpy(2 * linear.one_hot(y, 3) - 1).double()
    logits = inputs @ weight.T + torch.from_numpy(found.bias)
    loss = (1 - sign * logits).clamp(min=0).square().mean(0).sum() + 0.05 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-3


def test_what_is_not_known_changes_nothing():
    x, y = blobs(gap=0.5)
    targets, known = linear.one_hot(y, 3), np.arange(60) >= 20
    targets[~known, 2] = -1
    found = linear.fit(x, targets, {"solver": "lbfgs", "penalty": 0.1}, loss="sigmoid")
    standard = split.standardise(x)[0]
    theirs = LogisticRegression(C=1 / (0.1 * 40), tol=1e-8).fit(standard[known], y[known] == 2)
    assert np.allclose(found.weight[2], theirs.coef_[0], atol=2e-3)


def test_folds_hold_each_image_out_once_but_single_ones():
    labels = np.array([0] * 12 + [1] * 7 + [2, 2, 3])
    parts = split.folds(labels, seed=1)
    held_out = np.concatenate([rows for _, rows in parts])
    assert sorted(held_out) == list(range(21))
    for fit, rows in parts:
        assert not set(fit) & set(rows)
        assert set(labels[rows]) <= set(labels[fit])
    assert split.folds(np.arange(4), seed=0) == []


def test_the_classifier_is_calibrated_and_judged_on_what_it_was_not_fitted_on():
    x, y = blobs(300, 3, gap=1.0)
    fitted = head_fit.fit_features(x, y, ("a", "b", "c"))
    assert fitted.held_out is not None
    assert sorted(fitted.held_out.labels) == sorted(y)
    facts = fitted.held_out.facts(fitted.classifier, 0)
    logits = fitted.classifier.logits(torch.from_numpy(x)).numpy()
    assert facts["metrics"]["top1"]["value"] < (logits.argmax(1) == y).mean() + 0.01
    assert facts["metrics"]["nll"]["value"] <= 1.0
    assert 0.05 < fitted.classifier.calibration.temperature < 20
    labels = np.random.default_rng(0).permutation(y)  # nothing to learn: held-out figures must tell
    random = head_fit.fit_features(x, labels, ("a", "b", "c"))
    assert random.held_out is not None
    assert random.held_out.facts(random.classifier, 0)["metrics"]["top1"]["value"] < 0.45


def test_one_image_a_class_gives_class_means_and_says_that_nothing_is_held_out():
    x, y = blobs(3, 3)
    fitted = head_fit.fit_features(x, y, ("a", "b", "c"))
    assert fitted.held_out is None
    assert "single image" in fitted.notes[0]
    more, labels = blobs(300, 3)
    logits = fitted.classifier.logits(torch.from_numpy(more)).numpy()
    assert (logits.argmax(1) == labels).mean() > 0.9
    cosine = (more / np.linalg.norm(more, axis=1, keepdims=True)) @ (
        x / np.linalg.norm(x, axis=1, keepdims=True)
    ).T
    assert (logits.argmax(1) == cosine.argmax(1)).all()


def test_balance_moves_answers_to_the_small_class():
    rng = np.random.default_rng(0)
    y = np.r_[np.zeros(180, int), np.ones(20, int)]
    x = (rng.normal(size=(200, 4)) + y[:, None] * 0.8).astype(np.float32)
    answers = []
    for balance in ("none", "loss"):
        config = head_fit.Config(balance=balance, classifier="softmax")
        classifier = head_fit.fit_features(x, y, ("a", "b"), config=config).classifier
        answers.append(int((classifier.logits(torch.from_numpy(x)).argmax(1) == 1).sum()))
    assert answers[1] > 2 * answers[0]
    with pytest.raises(ValueError, match="sampler"):
        head_fit.Config(balance="sampler")


def test_several_labels_an_image():
    rng = np.random.default_rng(0)
    sets = rng.integers(0, 2, (120, 3)).astype(np.int8)
    x = (sets @ rng.normal(size=(3, 8)) * 3 + rng.normal(size=(120, 8))).astype(np.float32)
    sets[0] = (1, -1, 0)
    fitted = head_fit.fit_features(x, sets, ("a", "b", "c"))
    assert fitted.held_out is not None
    assert fitted.classifier.multi_label
    facts = fitted.held_out.facts(fitted.classifier, 0)
    assert facts["metrics"]["map_macro"]["value"] > 0.9
    names = [floor["name"] for floor in floors.floors(x, sets, softmax=True)]
    assert names == ["20-NN", "sigmoid"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model(backbones.build(name="vit-n/8", image_size=16, depth=1), PREPROCESS)


def pictures(n=30):
    """Dark and bright ones, the last without a label."""
    rng, labels = np.random.default_rng(0), np.arange(n) % 2
    values = rng.integers(0, 90, (n, 16, 16, 3)) + labels[:, None, None, None] * 160
    labels[-1] = -1
    return ArrayImages(values.astype(np.uint8), labels=labels, classes=("dark", "bright"))


def test_a_run_folder_is_written_read_again_and_refused_to_another(model, tmp_path):
    images, out = pictures(), RunFolder(tmp_path / "run")
    result = head.fit(model, images, out=out, source="m", cache=tmp_path / "cache")
    assert out.finished
    facts = json.loads((out.path / "finetune.json").read_text())
    assert facts == result.facts
    assert (facts["images"], facts["classes"]) == (29, ["dark", "bright"])
    assert facts["held_out"]["metrics"]["top1"]["value"] > 0.9
    assert {floor["name"] for floor in facts["floors"]} == {"nearest class mean", "20-NN", "hinge", "softmax"}
    assert "left out, without a label: 1 image" in facts["notes"]
    loaded = weights.load(out.path)
    assert loaded.classify(images.subset(np.arange(10))).names == ["dark", "bright"] * 5
    before = (out.path / "model.safetensors").stat().st_mtime_ns
    assert head.fit(model, images, out=out, source="m").facts == facts
    assert (out.path / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another configuration"):
        head.fit(model, images, out=out, source="m", seed=1)


def test_images_of_one_class_are_refused(model, tmp_path):
    images = pictures()
    one = images.subset(np.flatnonzero(images.labels == 0))
    with pytest.raises(ValueError, match="at least two classes"):
        head.fit(model, one, out=RunFolder(tmp_path / "run"), source="m")
