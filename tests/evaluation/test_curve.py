"""Curves over numbers of labels: intervals that cover, and sentences that claim no more than they prove."""

import json

import numpy as np
import pytest
from scipy import stats

from omma.evaluation import curve
from omma.evaluation.curve import Cell, Curve, Labels


def made(rates, seeds=3, images=400, labels=("1", "2", "4", "8")):
    """A curve whose adapters have these accuracies at each number of labels, exactly."""
    cells = [
        Cell(
            adapter=adapter,
            labels=Labels.parse(text),
            images=10 * (k + 1),
            correct=np.tile(np.arange(images) < round(rate * images), (seeds, 1)),
        )
        for adapter, row in rates.items()
        for k, (text, rate) in enumerate(zip(labels, row, strict=True))
    ]
    return Curve(model="m", digest="d", data="x", cells=tuple(cells), protocol="", recipes={})


# ---------------------------------------------------------------- intervals
def test_intervals_cover_the_truth():
    """Accuracies with random effects of seed and image, and a paired difference of .05."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(300):
        shared = rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.3, (1, 80))
        a, b = (rng.random((5, 80)) < np.clip(0.5 + shared + shift, 0, 1) for shift in (0.05, 0.0))
        _, low, high = curve.difference(a, b)
        hits.append(low <= 0.05 <= high)
    assert 0.93 <= np.mean(hits) <= 1.0


def test_an_interval_by_hand():
    values = np.array([[1.0, 0, 1, 1], [1, 0, 0, 1]])  # seeds .75 and .5; images 1, 0, .5, 1
    terms = np.array([0.03125 / 2, (0.140625 + 0.390625 + 0.015625 + 0.140625) / 3 / 4])
    freedom = terms.sum() ** 2 / (terms**2 / [1, 3]).sum()
    mean, low, high = curve.interval(values)
    assert mean == 0.625
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(terms.sum())
    np.testing.assert_allclose([low, high], [mean - reach, mean + reach])


def test_a_single_seed_and_equal_answers():
    a = np.ones((1, 50), bool)
    b = np.arange(50)[None] < 40
    assert curve.difference(a, a) == (0, 0, 0)
    mean, low, high = curve.difference(a, b)
    assert (mean, low > 0, high < 0.4) == (pytest.approx(0.2), True, True)
    assert curve.accuracy(a) == (1, 1, 1)
    with pytest.raises(ValueError, match="same seeds and images"):
        curve.difference(a, b[:, :9])


def test_pairs_are_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random((1, 500))
    a, b = (np.repeat(hard > cut, 5, 0) for cut in (0.5, 0.52))
    _, low, high = curve.difference(a, b)
    _, a_low, a_high = curve.accuracy(a)
    assert high - low < (a_high - a_low) / 2


# ---------------------------------------------------------------- words
@pytest.mark.parametrize(
    ("ours", "sentence"),
    [
        ([0.9, 0.9, 0.9, 0.9], "LoRA beats the linear head at every number of labels (1 to 8 a class)."),
        (
            [0.5, 0.5, 0.9, 0.9],
            "LoRA beats the linear head from 4 a class on; below, no difference is proved.",
        ),
        (
            [0.1, 0.5, 0.5, 0.9],
            "LoRA beats the linear head at 8 a class and loses to it at 1 a class; between, "
            "no difference is proved.",
        ),
        (
            [0.1, 0.1, 0.9, 0.9],
            "LoRA beats the linear head from 4 a class on and loses to it up to 2 a class.",
        ),
        (
            [0.9, 0.5, 0.9, 0.5],
            "LoRA beats the linear head at 1 and 4 a class; elsewhere, no difference is proved.",
        ),
        ([0.9, 0.9, 0.5, 0.5], "LoRA beats the linear head up to 2 a class; above, no difference is proved."),
        ([0.1, 0.1, 0.1, 0.1], "LoRA loses to the linear head at every number of labels (1 to 8 a class)."),
        ([0.5, 0.5, 0.5, 0.5], "LoRA is not proved to differ from the linear head at any number of labels."),
    ],
)
def test_the_answer_in_words(ours, sentence):
    assert made({"lora": ours, "linear": [0.5] * 4}).answer() == [sentence]


def test_adapters_of_which_the_same_is_true_share_a_sentence():
    rates = {name: [0.9] * 4 for name in ("bias", "lora", "linear")} | {"scratch": [0.5] * 4}
    assert made(rates).answer() == [
        "LoRA and bias tuning are not proved to differ from the linear head at any number of labels.",
        "The linear head, LoRA and bias tuning beat training from scratch at every number of labels "
        "(1 to 8 a class).",
    ]


def test_table_and_json():
    result = made({"lora": [0.5, 0.6], "pixels-knn": [0.2, 0.3]}, labels=("1%", "10%"))
    heads, rows = result.table()
    assert heads == ["top-1 in %; share of labels", "1%", "10%"]
    assert [row[0] for row in rows] == ["k-NN, raw pixels", "LoRA"]
    assert rows[1][1].startswith("50.0 ± ")
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["results"][0] | {"interval95": None} == {
        "subject": "trained",
        "protocol": "lora",
        "metric": "top1",
        "value": 0.5,
        "interval95": None,
        "labels": "1%",
        "n_train": 10,
        "n_test": 400,
        "seeds": [0.5] * 3,
    }


# ---------------------------------------------------------------- the option
def test_numbers_of_labels():
    assert list(map(str, curve.parse("16,1, 4 2"))) == ["1", "2", "4", "16"]
    assert [each.share for each in curve.parse("10%,0.5%")] == [0.005, 0.1]


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1.5", "1,10%", "200%", "1e3"])
def test_what_is_no_number_of_labels(text):
    with pytest.raises(ValueError, match=r"--curve .*"):
        curve.parse(text)
