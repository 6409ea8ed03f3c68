"""Which published encoders the hub's cache holds."""

import json

import pytest

from omma.weights import at_hand


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def add(repository, config=None, weights="model.safetensors"):
        snapshot = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        if config is not None:
            (snapshot / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        if weights:
            (snapshot / weights).touch()

    return add


def test_encoders_are_named_as_init_takes_them(cache):
    cache("timm/vit_small_patch14_dinov2.lvd142m")
    cache("facebook/dinov2-small", {"model_type": "dinov2"})
    cache("openai/clip-vit-base-patch32", {"model_type": "clip"}, weights="pytorch_model.bin")
    assert at_hand.cached() == [
        "hf:facebook/dinov2-small", "hf:openai/clip-vit-base-patch32",
        "timm:vit_small_patch14_dinov2.lvd142m",
    ]  # fmt: skip


def test_what_is_no_encoder_or_has_no_weights_is_left_out(cache):
    cache("bert-org/base", {"model_type": "bert"})
    cache("facebook/dinov2-base", {"model_type": "dinov2"}, weights="")
    cache("some/odd", "{")
    cache("some/list", "[1]")
    cache("some/nothing")
    assert at_hand.cached() == []


def test_the_cache_is_where_the_hub_keeps_it(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    snapshot = tmp_path / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert at_hand.cached() == ["timm:resnet18.a1_in1k"]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    assert at_hand.cached() == []
