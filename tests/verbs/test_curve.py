"""`omma evaluate --curve`: the same twice, resumed where it was killed, and no test image ever seen."""

import json

import numpy as np
import pytest
import torch

from omma import backbones, weights
from omma.adaptation import curve as curves
from omma.adaptation import curve_fits
from omma.adaptation.curve_store import Store, key
from omma.core.protocols import Preprocess
from omma.data.sources.collection import ArrayImages
from omma.reporting.curve_chart import draw
from omma.verbs.curve import curve

STEPS = 3
PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(5)
    encoder = backbones.build(name="vit-ti/8", image_size=16, dim=24, heads=3, depth=1)
    folder = tmp_path_factory.mktemp("runs") / "x"
    weights.save(folder, encoder, PREPROCESS)
    return folder


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    recipe = curve_fits.recipe
    monkeypatch.setattr(
        curves, "recipe", lambda *args: curve_fits.replace(recipe(*args), steps=STEPS, batch=8)
    )


def images():
    """Two classes of one colour each; the test part is the last third."""
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 2
    pixels = 100 + 60 * labels[:, None, None, None] + rng.normal(0, 60, (30, 16, 16, 3))
    splits = np.repeat(["train", "test"], [20, 10])
    return ArrayImages(
        pixels.clip(0, 255).astype(np.uint8), labels, ("dark", "light"), splits, source="tones"
    )


OPTIONS = {"labels": "2", "seeds": 2, "adapters": ("bias", "scratch"), "device": "cpu", "precision": "fp32"}


def test_a_curve_twice_is_the_same_and_one_that_was_killed_goes_on(model, tmp_path, monkeypatch):
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    whole = curve(model, images(), json=first, cache=None, **OPTIONS)
    assert [row[0] for row in whole.table()[1]] == [
        *(f"{name}, raw pixels" for name in ("class means", "k-NN", "hinge loss", "linear")),
        *("from scratch", "class means", "k-NN", "hinge loss", "linear head", "bias tuning"),
    ]
    fits, fit = [], curve_fits.Trainer.__call__

    def counted(self, adapter, rows, *rest):
        fits.append(adapter)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return fit(self, adapter, rows, *rest)

    monkeypatch.setattr(curve_fits.Trainer, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        curve(model, images(), cache=tmp_path / "cache", **OPTIONS)
    result = curve(model, images(), json=again, cache=tmp_path / "cache", **OPTIONS)
    assert again.read_bytes() == first.read_bytes()
    assert len(fits) == 3 + 4 - 2  # two were done
    assert first.with_suffix(".svg").read_text() == draw(json.loads(first.read_text()))
    assert result.files == (str(again), str(again.with_suffix(".svg")))


def test_no_test_image_is_learned_from(model, monkeypatch):
    learned = []
    seen = curve_fits.session.run

    def watched(request, *rest):
        learned.extend(request.images.path(k) for k in range(len(request.images)))
        assert request.supervision.holdout == 0
        return seen(request, *rest)

    monkeypatch.setattr(curve_fits.session, "run", watched)
    curve(model, images(), cache=None, **OPTIONS | {"labels": "4", "adapters": ("full",)})
    assert len(learned) == 2 * 4 * 2
    assert set(learned) <= {f"tones[{k}]" for k in range(20)}


def test_the_linear_head_is_where_adapters_begin(model, monkeypatch):
    """LoRA and bias tuning change nothing before the first step, so their answers are then the head's."""
    recipe = curves.recipe
    monkeypatch.setattr(curves, "recipe", lambda *args: curve_fits.replace(recipe(*args), lr=1e-30))
    result = curve(model, images(), cache=None, **OPTIONS | {"labels": "2", "adapters": ("lora", "full")})
    (labels,) = result.labels
    for adapter in ("lora", "full"):
        assert (result.cell(adapter, labels).correct == result.cell("linear", labels).correct).all()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"adapters": ("lore",)}, r"--adapt lore: a curve has scratch, prototypes, .* and full"),
        ({"seeds": 0}, "--seeds 0: must be at least 1"),
        ({"labels": "1,x"}, "--curve x: give numbers of labels a class"),
    ],
)
def test_what_is_refused(model, options, why):
    with pytest.raises(ValueError, match=why):
        curve(model, images(), cache=None, **OPTIONS | options)


def test_several_labels_are_refused(model):
    sets = np.array([[1, 1], [1, 0], [0, 0]])
    several = ArrayImages(np.zeros((3, 16, 16, 3), np.uint8), sets, source="sets")
    with pytest.raises(ValueError, match=r"sets: its images have several labels each .* a curve needs one"):
        curve(model, several, cache=None, **OPTIONS)


def test_the_store_reads_what_it_can(tmp_path):
    file = tmp_path / "c.jsonl"
    right = np.arange(11) % 3 == 0
    Store(file).put(key(a=1), right, {"adapter": "lora"})
    file.write_text(file.read_text() + '{"key": "cut", "corr\nnonsense\n{"key": 1}\n')
    store = Store(file)
    assert store.get(key(a=1)).tolist() == right.tolist()
    assert (store.get(key(a=2)), store.get("cut")) == (None, None)
    store.put(key(a=2), ~right, {})
    assert Store(file).get(key(a=2)).tolist() == (~right).tolist()
    assert key(a=1, b=2) == key(b=2, a=1) != key(a=1, b=3)
