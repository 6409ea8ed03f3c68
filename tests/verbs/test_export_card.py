"""The model card of an export, and its upload, which only `push` starts."""

import json
import sys

import export_networks as networks
import numpy as np
import pytest
import torch

from omma import weights
from omma.core.protocols import NO_EXTRAS
from omma.verbs.export import export
from omma.weights.classifier import Calibration, Classifier
from omma.weights.export.formats import FORMATS, Exporting

ORIGIN = {
    "images": "/home/somebody/leaves", "method": "dino", "model": "vit-ti/8", "recipe": "small", "seed": 7,
    "steps": 400, "settings": {"batch": 64, "lr": 0.002},
}  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 255, (4, 40, 40, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    return tmp_path / "images.npy"


@pytest.fixture
def run(tmp_path):
    encoder = networks.network("vit-ti/8", depth=1)
    weights.save(tmp_path / "run", encoder, networks.preprocess_of(encoder), ORIGIN)
    return tmp_path / "run"


def evaluation(digest, value):
    score = {"protocol": "knn", "metric": "top1", "k": 20, "interval95": [value - 0.05, value + 0.05]}
    results = [{"subject": "trained", "value": value, **score}, {"subject": "pixels", "value": 0.3, **score}]
    return {
        "schema": 1,
        "data": "/data/birds",
        "digest": digest,
        "protocol": "stratified",
        "results": results,
    }


@pytest.mark.parametrize(("format", "package"), [("hf", "transformers"), ("timm", "timm")])
def test_the_card_says_how_it_was_made_and_only_what_was_measured(format, package, run, images):
    pytest.importorskip(package, reason=f"{package} is not installed")
    digest = weights.load(run).digest
    stored = evaluation(digest, 0.612) | {"earlier": [evaluation("another model's", 0.987)]}
    (run / "evaluation.json").write_text(json.dumps(stored))
    card = (export(run, format, images=images).path / "README.md").read_text()
    front = dict(line.split(": ", 1) for line in card.split("---\n")[1].splitlines() if line[0] != "#")
    assert json.loads(front["library_name"]) == package
    assert json.loads(front["pipeline_tag"]) == "image-feature-extraction"
    assert json.loads(front["tags"])[0] == "omma"
    for said in ("| data | leaves |", "| method | dino |", "| seed | 7 |", "| batch | 64 |", "omma 0."):
        assert said in card, said
    assert "| Trained | k-NN top1 k=20 | 61.2 % | 56.2 to 66.2 |" in card
    assert "| Raw pixels | k-NN top1 k=20 | 30.0 %" in card
    assert "98.7" not in card
    assert "/home" not in card
    assert "license: fill" in card


def test_without_an_evaluation_the_card_has_no_figure(run, images):
    pytest.importorskip("timm", reason="timm is not installed")
    card = (export(run, "timm", images=images).path / "README.md").read_text()
    assert "was not evaluated" in card
    assert " %" not in card


POOLED = {
    "vit": ({"name": "vit-ti/8"}, "pooler_output"),
    "vit, mean": ({"name": "vit-ti/8", "pool": "mean"}, None),
    "dinov2": ({"name": "dinov2-s/14"}, "pooler_output"),
    "beit": ({"name": "beit-ti/8", "pool": "mean_fc_norm"}, "pooler_output"),
    "dinov3": ({"name": "dinov3-s/8"}, "pooler_output"),
    "swin": ({"name": "swin-t", "dim": 24, "depths": (2, 2), "heads": (1, 2), "window": 4}, "pooler_output"),
}


@pytest.mark.parametrize("classifies", [False, True], ids=["encoder", "classifier"])
@pytest.mark.parametrize("case", POOLED)
def test_what_the_card_says_of_pooling_gives_ommas_vector(case, classifies, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    spec, name = POOLED[case]
    encoder = networks.network(**spec)
    weight = torch.randn(3, encoder.dim, generator=torch.Generator().manual_seed(1))
    classifier = Classifier(classes=("a", "b", "c"), weight=weight, calibration=Calibration(temperature=0.5))
    classifier = classifier if classifies else None
    what = Exporting(encoder, networks.preprocess_of(encoder), {}, NO_EXTRAS, classifier)
    reopened = FORMATS["hf"].write(what, tmp_path / "out")
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    (pixels,) = networks.noise(encoder)
    with torch.no_grad():
        given = eval(reopened.pooling, {"model": model, "images": pixels})
        own = encoder(pixels).pooled
    torch.testing.assert_close(given, own, rtol=1e-4, atol=1e-5)
    if not classifies and name:
        assert reopened.pooling.endswith(name)


# ---------------------------------------------------------------- upload
class Hub:
    """What huggingface_hub's HfApi was asked for."""

    calls: list = []  # noqa: RUF012

    def __init__(self, token):
        self.token = token

    def create_repo(self, **asked):
        self.calls.append(("create", self.token, asked))

    def upload_folder(self, **asked):
        self.calls.append(("upload", self.token, asked))


@pytest.fixture
def hub(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.setattr(huggingface_hub, "HfApi", type("Api", (Hub,), {"calls": []}))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "own")
    return huggingface_hub


def test_push_uploads_with_the_users_token_and_nothing_does_without_it(run, images, hub, tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    export(run, "timm", tmp_path / "a", images)
    assert hub.HfApi.calls == []
    result = export(run, "timm", tmp_path / "b", images, push="me/leaves")
    (made, token, asked), (uploaded, _, what) = hub.HfApi.calls
    assert (made, uploaded, token, asked["private"]) == ("create", "upload", "own", True)
    assert (what["repo_id"], what["folder_path"]) == ("me/leaves", str(tmp_path / "b"))
    assert "https://huggingface.co/me/leaves" in result.notes[-1]


def test_push_is_refused_before_the_work(run, images, hub, tmp_path, monkeypatch):
    for format, name, why in [
        ("timm", "leaves", "USER/NAME"),
        ("onnx", "me/leaves", "model card"),
    ]:
        with pytest.raises(ValueError, match=why):
            export(run, format, tmp_path / "x", images, push=name)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match="hf auth login"):
        export(run, "timm", tmp_path / "x", images, push="me/leaves")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="huggingface_hub is not installed"):
        export(run, "timm", tmp_path / "x", images, push="me/leaves")
    assert not (tmp_path / "x").exists()


def test_a_hub_that_refuses_leaves_the_export(run, images, hub, tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="timm is not installed")

    def refuse(self, **asked):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(hub.HfApi, "upload_folder", refuse)
    with pytest.raises(ValueError, match=r"is written, but was not pushed to me/leaves: 403"):
        export(run, "timm", tmp_path / "x", images, push="me/leaves")
    assert (tmp_path / "x" / "README.md").exists()
