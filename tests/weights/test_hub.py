"""The hub without a network: hand-built caches, weights of the reference libraries, one-line errors."""

import json
import sys

import pytest
import safetensors.torch
import torch

from omma.core.errors import install_command
from omma.weights.hub import fetch_hf, fetch_timm, read_config
from omma.weights.read_file import read

pytest.importorskip("huggingface_hub.constants")
hub = pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
VIT = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network; huggingface_hub read the environment when it was imported."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def snapshot(cache, repository, commit=COMMIT, branch="main"):
    """An empty snapshot, laid out as huggingface_hub does."""
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / branch).write_text(commit)
    folder = home / "snapshots" / commit
    folder.mkdir(parents=True)
    return folder


def tensors(seed=0):
    torch.manual_seed(seed)
    return {"a.weight": torch.randn(2, 3), "b.bias": torch.randn(3)}


def fill(folder, **files):
    (folder / "config.json").write_text('{"model_type": "vit"}')
    for name, value in files.items():
        name = name.replace("__", ".")
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(value))
        else:
            (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(
                value, folder / name
            )
    return folder


def same(fetched, wanted):
    assert fetched.keys() == wanted.keys()
    assert all(torch.equal(x, wanted[name]) for name, x in fetched.items())


def refused(call, *arguments):
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


# hf:


def test_transformers_model_from_the_cache(cache):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32
    )
    model = transformers.ViTModel(config)
    folder = snapshot(cache, "org/name")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    fetched = fetch_hf("hf:org/name")
    assert fetched == folder
    same(read(fetched).tensors, safetensors.torch.load_file(folder / "model.safetensors"))
    # transformers 5 names its parameters anew, but writes the names of old
    assert sum(x.numel() for x in read(fetched).tensors.values()) == sum(
        x.numel() for x in model.parameters()
    )
    assert read(fetched).metadata == {"format": "pt"}
    assert read_config(fetched)["hidden_size"] == 16
    assert read_config(fetched, "preprocessor_config.json")["image_mean"] == [0.5] * 3
    assert fetch_hf(str(folder)) == fetch_hf(f"hf:{folder}") == folder


def test_older_weights_shards_and_revisions(cache):
    older = fill(snapshot(cache, "org/bin"), pytorch_model__bin=tensors(1))
    same(read(fetch_hf("hf:org/bin")).tensors, tensors(1))
    assert fetch_hf("hf:org/bin") == older

    index = {"weight_map": {"a.weight": "one.safetensors", "b.bias": "two.safetensors"}}
    folder = fill(snapshot(cache, "org/parts"), **{"model.safetensors.index.json": index})
    assert "cache" in refused(fetch_hf, "hf:org/parts")
    for name, shard in index["weight_map"].items():
        safetensors.torch.save_file({name: tensors()[name]}, folder / shard)
    same(read(fetch_hf("hf:org/parts")).tensors, tensors())

    other = fill(snapshot(cache, "org/bin", "f" * 40, "v2"), model__safetensors=tensors(2))
    assert fetch_hf("hf:org/bin@v2") == fetch_hf(f"hf:org/bin@{'f' * 40}") == other
    assert fetch_hf(f"hf:org/bin@{COMMIT}") == fetch_hf("hf:org/bin@main") == older


def test_offline_and_not_cached(cache, monkeypatch):
    line = refused(fetch_hf, "hf:org/name")
    assert line.startswith(
        "hf:org/name is not (completely) in the cache, and HF_HUB_OFFLINE is set; unset it"
    )
    fill(snapshot(cache, "org/name"))
    assert refused(fetch_hf, "hf:org/name") == line
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    cause = hub.errors.LocalEntryNotFoundError("An error\nhappened")
    monkeypatch.setattr(hub, "hf_hub_download", raising(cause))
    assert "https://huggingface.co cannot be reached; check the network" in refused(fetch_hf, "hf:org/name")


def raising(error):
    def download(*_, **__):
        raise error

    return download


@pytest.mark.parametrize("name", ["hf:a/b/c", "hf:", "hf:a--b", "hf:no such folder/x"])
def test_names_that_cannot_be(name):
    assert "write hf:ORG/NAME" in refused(fetch_hf, name)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "GatedRepoError",
            "accept its terms at https://huggingface.co/org/name and log in (`hf auth login`)",
        ),
        ("RepositoryNotFoundError", "not on the hub, or private; check the name"),
        ("RevisionNotFoundError", "no such revision"),
        ("EntryNotFoundError", "lacks a file"),
        ("HfHubHTTPError", "cannot be fetched"),
    ],
)
def test_what_the_hub_answers(monkeypatch, kind, words):
    made = getattr(hub.errors, kind)
    error = made.__new__(made)  # their constructors want the answer of a server
    Exception.__init__(error, "404 Client Error.\nSee https://...")
    monkeypatch.setattr(hub, "hf_hub_download", raising(error))
    assert words in refused(fetch_hf, "hf:org/name@v1")


def test_repository_without_weights(cache, monkeypatch):
    folder = fill(snapshot(cache, "org/name"))

    def download(repository, name, revision=None):
        if (folder / name).exists():
            return str(folder / name)
        raise hub.errors.EntryNotFoundError(name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert "has no model.safetensors or pytorch_model.bin" in refused(fetch_hf, "hf:org/name")


def test_package_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert install_command("hf") in refused(fetch_hf, "hf:org/name")
    monkeypatch.setitem(sys.modules, "timm", None)
    assert install_command("timm") in refused(fetch_timm, "timm:resnet18")


# timm:


def test_timm_from_the_cache(cache):
    timm = pytest.importorskip("timm")
    config = timm.get_pretrained_cfg(VIT)
    torch.manual_seed(1)
    model = timm.create_model(VIT)
    assert "timm:" + VIT in (line := refused(fetch_timm, f"timm:{VIT}"))
    assert "HF_HUB_OFFLINE" in line
    safetensors.torch.save_file(model.state_dict(), snapshot(cache, config.hf_hub_id) / "model.safetensors")
    wanted = {name: x for name, x in model.state_dict().items() if not name.startswith("head.")}
    for name in (f"timm:{VIT}", f"timm:{VIT}.{config.tag}", VIT):
        fetched = fetch_timm(name)
        same(fetched.tensors, wanted)
        assert fetched.architecture == VIT
        assert fetched.config["mean"] == (0.5, 0.5, 0.5)
        assert fetched.config["tag"] == config.tag


def test_timm_names(monkeypatch):
    pytest.importorskip("timm")
    assert "there is vit_tiny_patch16_224" in refused(fetch_timm, "timm:vit_tiny_patch16_22")
    assert "list_pretrained()" in refused(fetch_timm, "timm:qqqqqqq")
    line = refused(fetch_timm, f"timm:{VIT}.mine")
    assert f"no weights mine of {VIT}; there is {VIT}.augreg_in21k, " in line
    assert "timm has no weights of vit_small_patch16_18x2_224" in refused(
        fetch_timm, "timm:vit_small_patch16_18x2_224"
    )


# Settings


def test_config(tmp_path):
    assert "config.json cannot be read (No such file" in refused(read_config, tmp_path)
    for text, words in (("{", "is damaged"), ("[1]", "holds no settings, but a list"), ("", "is damaged")):
        (tmp_path / "config.json").write_text(text)
        assert words in refused(read_config, tmp_path)


def test_a_hub_that_cannot_be_reached_is_not_asked_again_and_again(monkeypatch, tmp_path, caplog, capfd):
    """Its own client tries each file for half a minute, and logs every attempt."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    line = refused(fetch_hf, "hf:org/name")
    assert "http://127.0.0.1:9 cannot be reached" in line
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert hub.constants.HF_HUB_OFFLINE is False
