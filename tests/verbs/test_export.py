"""`omma export`: every format, read back by the library that it is for."""

import numpy as np
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, weights
from omma.core.protocols import Preprocess
from omma.verbs import export as verb
from omma.weights import source

SIZE = 32
SMALL = {  # of one block, which takes less time to trace; tests/weights/export has several
    "vit": {"name": "vit-ti/8", "depth": 2},
    "vit, mean": {"name": "vit-ti/8", "depth": 1, "pool": "mean"},
    "vit, sincos": {"name": "vit-ti/8", "depth": 1, "positions": "sincos"},
    "vit, rope": {"name": "vit-ti/8", "depth": 1, "positions": "rope"},
    "vit, linear": {"name": "vit-ti/8", "depth": 1, "mixer": "linear"},
    "clip": {"name": "vit-ti/8", "depth": 1, "norm_pre": True, "mlp": "quickgelu", "eps": 1e-5},
    "deit": {"name": "deit-ti/8", "depth": 1},
    "dinov2": {"name": "dinov2-s/8", "depth": 1, "registers": 4, "prefix_positions": False},
    "beit": {"name": "beit-ti/8", "depth": 1, "pool": "mean_fc_norm"},
    "eva02": {"name": "eva02-ti/8", "depth": 1, "rope_home": 4},
    "dinov3": {"name": "dinov3-s/8", "depth": 1},
    "cait": {"name": "cait-xxs24", "depth": 1, "patch": 8},
    "swin": {"name": "swin-t", "dim": 24, "depths": (2, 2), "heads": (1, 2), "window": 4},
    "vitc": {"name": "vitc-15mf"},
    "timm's": {"name": "timm:test_resnet"},
}
NOT_TIMM = {"vit, rope", "vit, linear", "vitc"}
HF = {"vit", "vit, sincos", "clip", "deit", "dinov2", "beit", "dinov3", "swin", "vit, mean"}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(10):
        array = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    return tmp_path / "images"


def model_of(case):
    torch.manual_seed(0)
    preprocess = Preprocess(
        size=SIZE, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3
    )
    encoder = backbones.build(image_size=SIZE, **SMALL[case])
    for name, p in encoder.named_parameters():
        if "running" not in name:
            p.data.add_(0.05 * torch.randn_like(p))
    return weights.Model(encoder, preprocess)


SAME = {"vit, mean", "vit, sincos", "clip", "deit"}  # to a tracer, which takes its time, "vit" again
# both traced formats begin with one graph: each network goes quickly through one of them, and slowly both
QUICK = {
    "onnx": {"vit", "vit, linear", "swin", "dinov3"},
    "torch": {"vit", "cait", "beit", "eva02", "dinov2", "vit, rope", "vitc", "timm's"},
}


def pairs():
    for format in verb.FORMATS:
        for case in SMALL:
            slow = case not in QUICK.get(format, SMALL)
            if format not in QUICK or case not in SAME:
                yield pytest.param(format, case, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("format", "case"), pairs())
def test_round_trips(case, format, folder, tmp_path):
    for package in {
        "timm": ["timm"],
        "hf": ["transformers"],
        "onnx": ["onnx", "onnxscript", "onnxruntime"],
    }.get(format, []):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if case == "timm's":
        pytest.importorskip("timm", reason="timm is not installed")
    out = tmp_path / "out" / {"onnx": "m.onnx", "torch": "m.pt2"}.get(format, "m")
    model = model_of(case)
    impossible = (format == "timm" and case in NOT_TIMM) or (format == "hf" and case not in HF)
    if impossible:
        with pytest.raises(ValueError, match="instead") as caught:
            verb.export(model, format, out, folder)
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "out").iterdir())
        return
    result = verb.export(model, format, out, folder)
    assert result.path == out
    assert out.exists()
    assert result.difference <= (1e-3 if format == "onnx" else 1e-4) * result.scale
    assert result.images == 8
    assert (SIZE, SIZE) in result.sizes
    assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_what_differs_is_not_kept(folder, tmp_path, monkeypatch):
    model = model_of("vit")

    def damaged(folder):
        other = model_of("vit")
        other.encoder.blocks[1].mlp.fc2.weight.data[3] += 0.01
        return other

    monkeypatch.setattr(source, "load", damaged)  # what reopens it
    with pytest.raises(ValueError, match="features differ by"):
        verb.export(model, "safetensors", tmp_path / "out" / "model", folder)
    assert not list((tmp_path / "out").iterdir())


def test_bad_calls(folder, tmp_path):
    model = model_of("vit")
    with pytest.raises(ValueError, match="choose safetensors"):
        omma.export(model, "tflite", tmp_path / "x", folder)
    with pytest.raises(ValueError, match="--images"):
        verb.export(model, "safetensors", tmp_path / "x")
    with pytest.raises(ValueError, match="exists"):
        verb.export(model, "safetensors", folder, folder)


def test_places_that_cannot_be_written_and_links(folder, tmp_path, monkeypatch):
    model, export = model_of("vit"), verb.export
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written") as caught:
        export(model, "safetensors", tmp_path / "file" / "x", images=folder)
    assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    export(model, "safetensors", tmp_path / "link", images=folder)
    assert weights.load(tmp_path / "empty").digest == model.digest
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(model, "safetensors", ".", images=folder)
    assert weights.load(tmp_path / "here").digest == model.digest
    model.encoder.norm.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        export(model, "safetensors", tmp_path / "nan", images=folder)
    assert not (tmp_path / "nan").exists()


def test_compared_on_the_images_that_it_was_trained_on(folder, tmp_path):
    model = model_of("vit")
    weights.save(tmp_path / "run", model.encoder, model.preprocess, {"images": str(folder)})
    result = verb.export(tmp_path / "run", "torch", tmp_path / "run" / "model.pt2")
    assert result.images == 8
    assert weights.load(tmp_path / "run").digest  # the run is as it was
