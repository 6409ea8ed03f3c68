"""`--adapt auto`: the simplest way that is as good as the best, judged on images that none was fitted on."""

import json

import numpy as np
import pytest
import torch

import omma
from omma import backbones, weights
from omma.adaptation import choose, head_fit
from omma.adaptation.choose import Candidate
from omma.core.protocols import Preprocess
from omma.data.sources.collection import ArrayImages
from omma.pretraining.events import Note
from omma.weights import Model
from omma.weights.classifier import Classifier

PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
HERE = {"batch_size": 8, "device": "cpu", "precision": "fp32", "workers": 0, "image_size": 16}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start") / "run"
    encoder = backbones.build(name="vit-n/8", image_size=16, depth=2, dim=32, heads=2, hidden=64)
    weights.save(folder, encoder, PREPROCESS)
    return folder


def colours(n=60):
    rng, kind = np.random.default_rng(0), np.arange(n) % 2
    pixels = rng.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8)
    for k in range(2):
        pixels[kind == k, :, :, k] += 100
    return ArrayImages(pixels, kind, ("red", "green"))


def candidate(name, right):
    """Of two classes; right: for each held-out image whether the answer is."""
    labels = np.zeros(len(right), int)
    logits = np.stack([np.asarray(right, float), 1 - np.asarray(right, float)], 1).astype(np.float32)
    return Candidate(
        name=name,
        model=Model(torch.nn.Module(), PREPROCESS),  # pyright: ignore
        classifier=Classifier(classes=("a", "b"), weight=torch.zeros(2, 2)),
        held_out=head_fit.HeldOut(logits=logits, labels=labels, protocol="held out"),
        seconds=1.0,
        settings={},
    )


def test_the_simplest_within_one_standard_error_of_the_best_is_kept():
    right = np.arange(100) < 90
    one_more, ten_more = np.arange(100) < 91, np.arange(100) < 100
    simple, equal, better = candidate("head", right), candidate("bias", one_more), candidate("full", ten_more)
    assert choose.simplest([simple, equal]).name == "head"  # by one image: no more than chance
    assert choose.simplest([simple, equal, better]).name == "full"
    assert choose.simplest([simple, candidate("full", right)]).name == "head"
    # as many right, but on other images: a difference of 10 of 100 that disagree on 60
    noisy = candidate("full", (np.arange(100) < 60) | (np.arange(100) >= 65))
    assert choose.simplest([candidate("head", np.arange(100) >= 15), noisy]).name == "full"


def test_few_labels_or_little_time_leave_the_head_alone(start, tmp_path, monkeypatch):
    notes = []
    options = {**HERE, "adapt": "auto", "listen": lambda e: notes.append(str(getattr(e, "text", "")))}
    result = omma.finetune(start, colours(), out=tmp_path / "few", shots=2, **options)
    facts = json.loads((result.out / "finetune.json").read_text())
    assert (facts["adapt"], facts["candidates"]) == ("head", [])
    assert any("too few labels" in note for note in notes)
    monkeypatch.setattr(choose, "TRIED", {"bias": 8, "full": 8})
    result = omma.finetune(start, colours(), out=tmp_path / "short", budget="5s", **options)
    assert any("full is not tried: the budget is too short" in note for note in notes)
    assert json.loads((result.out / "finetune.json").read_text())["candidates"] == []


def test_all_ways_are_judged_on_the_same_held_out_images(start, tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "TRIED", {"bias": 8})
    events, out = [], tmp_path / "run"
    again = {**HERE, "adapt": "auto", "steps": 2, "out": out}
    result = omma.finetune(start, colours(), listen=events.append, **again)
    facts = json.loads((out / "finetune.json").read_text())
    assert [each["name"] for each in facts["candidates"]] == ["head", "bias"]
    assert {each["images"] for each in facts["candidates"]} == {12}
    assert facts["adapt"] == "head"  # two steps beat nothing
    assert {floor["features"] for floor in facts["floors"]} == {"features", "pixels"}
    assert not any("held out" in note for note in facts["notes"])  # the head has learned from all
    assert not (out / "candidates").exists()
    assert result.verdict is not None
    assert result.verdict.level == "good"
    model = weights.load(out)
    assert model.classify(colours(10)).names == ["red", "green"] * 5
    texts = [event.text for event in events if isinstance(event, Note)]
    assert any(text.startswith("kept: head") for text in texts)
    before = (out / "model.safetensors").stat().st_mtime_ns
    omma.finetune(start, colours(), **again)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"another configuration \(adapt.holdout: 0.2 there, 0.3 now\)"):
        omma.finetune(start, colours(), holdout=0.3, **again)
    with pytest.raises(ValueError, match="--lr: a head is fitted"):
        omma.finetune(start, colours(), adapt="head", lr=0.1, out=tmp_path / "no", device="cpu")
