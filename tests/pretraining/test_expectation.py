"""The plan says beforehand where a run is too short, and where published weights know more."""

import numpy as np
import pytest

import omma
from omma.data.sources.collection import ArrayImages
from omma.methods import simclr
from omma.pretraining import session
from omma.pretraining.request import Request

SMALL = {"method": "simclr", "model": "vit-n/8", "batch_size": 8, "device": "cpu", "workers": 0}


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def pictures(side=16, channels=3):
    values = np.random.default_rng(0).integers(0, 255, (16, side, side, channels), dtype=np.uint8)
    return ArrayImages(values)


def notes(words, tmp_path, images=None, **options):
    planned = session.plan(Request(images=images or pictures(), out=str(tmp_path / "run"), **SMALL | options))
    return [note for note in planned.notes if words in note]


def test_a_run_that_is_too_short_says_so_and_how_long_is_enough(tmp_path):
    least = simclr.small(16, "vit-n/8").least_steps
    assert least is not None
    (note,) = notes("teach less than raw pixels", tmp_path, steps=least - 1)
    assert f"{least - 1:,} steps" in note
    assert f"{least} were enough" in note
    assert notes("teach less than raw pixels", tmp_path, steps=least) == []
    (note,) = notes("teach less than raw pixels", tmp_path, budget="3s")
    assert "--budget " in note


def test_a_run_from_weights_is_not_expected_to_begin_at_nothing(tmp_path):
    omma.pretrain(pictures(), out=tmp_path / "first", steps=2, **SMALL)
    options = {"steps": 2, "init": str(tmp_path / "first"), "model": "auto"}
    assert notes("teach less than raw pixels", tmp_path, **options) == []
    assert notes("random weights", tmp_path, images=pictures(64), **options) == []


@pytest.mark.parametrize(("side", "channels", "told"), [(64, 3, True), (64, 1, False), (32, 3, False)])
def test_published_weights_are_named_for_what_may_be_photographs(tmp_path, hub, side, channels, told):
    found = notes("random weights", tmp_path, images=pictures(side, channels), steps=2)
    assert ["hf:facebook/dinov2-small" in note for note in found] == [True] * told
    snapshot = hub / "models--timm--resnet18.a1_in1k" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    found = notes("random weights", tmp_path, images=pictures(side, channels), steps=2)
    assert ["on this machine: timm:resnet18.a1_in1k" in note for note in found] == [True] * told
