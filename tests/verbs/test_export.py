"""`omma export`: every format, read back by the library that it is for."""

import contextlib
import os
import shutil
import stat
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, weights
from omma.core import outputs
from omma.core.protocols import Preprocess
from omma.verbs import export as verb
from omma.weights import source
from omma.weights.export import target

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
    "swin": {"name": "swin-t", "dim": 24, "depths": (2, 1), "heads": (1, 2), "window": 4},
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
    "onnx": {"vit", "dinov3"},
    "openvino": {"vit"},
    "torch": {"vit, linear", "swin", "cait", "beit", "eva02", "vitc"},  # timm's: test_traced.py
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
        "openvino": ["openvino", "onnx", "onnxscript"],
    }.get(format, []):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if case == "timm's":
        pytest.importorskip("timm", reason="timm is not installed")
    out = tmp_path / "out" / {"onnx": "m.onnx", "openvino": "m.xml", "torch": "m.pt2"}.get(format, "m")
    model = model_of(case)
    impossible = (format == "timm" and case in NOT_TIMM) or (format == "hf" and case not in HF)
    if impossible:
        with pytest.raises(ValueError, match="instead") as caught:
            verb.export(model, format, out, folder)
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "out").iterdir())
        return
    result = verb.export(model, format, out, folder)
    assert all(oct(f.stat().st_mode & 0o777) == "0o644" for f in out.parent.rglob("*") if f.is_file())
    assert result.path == out
    assert out.exists()
    assert result.difference <= verb.FORMATS[format].limit * result.scale
    assert result.images == 8
    assert (SIZE, SIZE) in result.sizes
    beside = ["m.bin"] if format == "openvino" else []
    assert sorted(file.name for file in out.parent.iterdir()) == [*beside, out.name]


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
    result = verb.export(tmp_path / "run", "safetensors", tmp_path / "run" / "exported")
    assert result.images == 8
    assert weights.load(tmp_path / "run").digest  # the run is as it was


@pytest.mark.parametrize(
    ("format", "package"),
    [
        ("timm", "timm"),
        ("hf", "transformers"),
        ("onnx", "onnx"),
        ("onnx", "onnxscript"),
        ("onnx", "onnxruntime"),
    ],
)
def test_a_missing_package_is_named_before_the_work(tmp_path, monkeypatch, format, package):
    monkeypatch.setitem(sys.modules, package, None)  # importing it now fails
    monkeypatch.setattr(weights, "load", lambda *_, **__: pytest.fail("the model was loaded before"))
    with pytest.raises(ValueError, match=f"{package} is not installed: .*pip install |uv sync") as caught:
        verb.export(tmp_path / "run", format, tmp_path / ("x.onnx" if format == "onnx" else "x"))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_a_place_that_cannot_be_written_is_found_out_before_the_work(tmp_path, monkeypatch, format):
    monkeypatch.setattr(weights, "load", lambda *_, **__: pytest.fail("the model was loaded before"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.pt2").mkdir()
    for name in ("file/x.pt2", "folder" if format == "safetensors" else "folder/x.pt2"):
        with pytest.raises(ValueError, match=r"cannot be written|exists|is one file") as caught:
            verb.export(tmp_path / "run", format, tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [("m", "m/model.json", "m/w"), ("m.onnx", "m.onnx.data")])
def test_an_export_of_several_files_appears_whole_or_not_at_all(tmp_path, names, monkeypatch):
    """Stopped at any rename, the name that is read is absent, or all of the export is there."""
    out, real = tmp_path / "at" / names[0], os.replace
    for stop in range(3):
        shutil.rmtree(tmp_path / "at", ignore_errors=True)
        left = [stop]

        def replace(old, new, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(old, new)

        with contextlib.suppress(KeyboardInterrupt), outputs.temporary_folder(out) as folder:
            for name in names if "." in names[0] else names[1:]:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text("new")
            if "." in names[0]:
                out.write_text("old")
            monkeypatch.setattr(os, "replace", replace)
            target.move(folder, out)
        monkeypatch.setattr(os, "replace", real)
        if out.exists():
            assert all(
                (tmp_path / "at" / name).is_dir() or (tmp_path / "at" / name).read_text() == "new"
                for name in names
            )


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_everything_that_the_verbs_write_has_the_permissions_of_any_new_file(folder, tmp_path):
    model = model_of("vit")
    out = tmp_path / "out"
    for k in range(10):
        (folder / f"{k % 2}").mkdir(exist_ok=True)
        (folder / f"{k}.png").rename(folder / f"{k % 2}" / f"{k}.png")
    before = os.umask(0o022)
    try:
        verb.export(model, "safetensors", out / "own", folder)
        verb.export(model, "timm", out / "timm", folder)
        if find_spec("transformers"):
            verb.export(model, "hf", out / "hf", folder)
        for name in ("x.npz", "x.parquet"):
            omma.embed(model, folder, out / name, device="cpu")
        omma.evaluate(
            model, folder, protocols=["ridge"], json=out / "x.json", cache=out / "cache", device="cpu"
        )
    finally:
        os.umask(before)
    modes = {file: stat.S_IMODE(file.stat().st_mode) for file in out.rglob("*")}
    private = {
        file.name: oct(mode) for file, mode in modes.items() if mode != (0o755 if file.is_dir() else 0o644)
    }
    assert len(modes) > 10
    assert not private
