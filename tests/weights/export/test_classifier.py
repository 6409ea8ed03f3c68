"""Exported classifiers: logits are compared, and class names lie beside them."""

import json

import export_networks as networks
import pytest
import torch
from PIL import Image

from omma.backbones import adapters
from omma.verbs.export import export
from omma.weights import Model
from omma.weights.classifier import Calibration, Classifier
from omma.weights.export.check import Reopened, compare, outputs
from omma.weights.export.formats import FORMATS, Exporting

CLASSES = ("cat", "dog", "owl")
CASES = {  # networks, and in which of timm and transformers their classifier has a place
    "vit": ({"name": "vit-ti/8"}, True, True),
    "vit, mean": ({"name": "vit-ti/8", "pool": "mean"}, True, False),
    "deit": ({"name": "deit-ti/8"}, False, True),
    "dinov2": ({"name": "dinov2-s/14", "registers": 4, "prefix_positions": False}, True, True),
    "dinov2, mean": ({"name": "dinov2-s/14", "pool": "mean"}, True, True),
    "beit": ({"name": "beit-ti/8", "pool": "mean_fc_norm"}, True, True),
    "dinov3": ({"name": "dinov3-s/8"}, True, False),
    "swin": ({"name": "swin-t", "dim": 24, "depths": (2, 2), "heads": (1, 2), "window": 4}, True, True),
    "timm's": ({"name": "timm:test_resnet"}, True, None),
}


def exporting(spec, adapt=None, **options):
    encoder = networks.network(**spec)
    if adapt:
        adapters.insert(encoder, adapt)
    weight = torch.randn(3, encoder.dim, generator=torch.Generator().manual_seed(1))
    calibration = Calibration(temperature=0.5)
    classifier = Classifier(classes=CLASSES, weight=weight, calibration=calibration, **options)
    return Exporting(encoder, networks.preprocess_of(encoder), {}, classifier.extras(), classifier)


def check(what, format, path, logits):
    reopened = FORMATS[format].write(what, path)
    for images in networks.noise(what.encoder, reopened.sizes):
        assert len(reopened.run(images)) == (3 if logits else 2)
        result = compare(what.encoder, reopened, [images], what.classifier)
        assert result.within(FORMATS[format].limit)
        assert bool(result.logits[1]) == logits
    assert logits == (not any("without the classifier" in note for note in reopened.notes))
    return reopened


@pytest.mark.parametrize("case", CASES)
def test_timm_has_it_where_it_is_linear_on_the_same_feature(case, tmp_path):
    timm = pytest.importorskip("timm")
    spec, logits, _ = CASES[case]
    what = exporting(spec, bias=torch.arange(3.0))
    check(what, "timm", tmp_path / "out", logits)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config.get("label_names") == list(CLASSES)) == logits
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.num_classes == (3 if logits else 0)


@pytest.mark.parametrize("case", [case for case, (*_, hf) in CASES.items() if hf is not None])
def test_transformers_has_it_where_it_is_linear_on_the_same_feature(case, tmp_path):
    pytest.importorskip("transformers")
    spec, _, logits = CASES[case]
    check(exporting(spec), "hf", tmp_path / "out", logits)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForImageClassification") == logits
    assert not logits or config["id2label"] == {"0": "cat", "1": "dog", "2": "owl"}


def test_graphs_have_logits_and_say_how_to_read_them(tmp_path):
    what = exporting({"name": "vit-ti/8", "depth": 1}, bias=torch.arange(3.0))
    onnxruntime = pytest.importorskip("onnxruntime")
    check(what, "onnx", tmp_path / "model.onnx", True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["pooled", "patches", "logits"]
    facts = json.loads(session.get_modelmeta().custom_metadata_map["omma"])
    assert facts["classes"] == list(CLASSES)
    assert facts["calibration"]["temperature"] == 0.5


@pytest.mark.parametrize("adapt", ["vpt", pytest.param("adapter", marks=pytest.mark.slow)])
def test_adapters_that_stay_are_traced_and_other_libraries_lack_them(adapt, tmp_path):
    what = exporting({"name": "vit-ti/8", "depth": 1}, adapt)
    check(what, "torch", tmp_path / "model.pt2", True)
    for format in ("timm", "hf"):
        with pytest.raises(ValueError, match=rf"has no {adapt} adapter .* as onnx or torch instead"):
            FORMATS[format].write(what, tmp_path / format)


@pytest.mark.slow
def test_two_heads_and_projections_are_traced_whole(tmp_path):
    dim = 192
    second = (torch.randn(3, dim), torch.randn(3))
    what = exporting({"name": "deit-ti/8", "depth": 1}, distilled=second)
    check(what, "torch", tmp_path / "model.pt2", True)
    check(what, "timm", tmp_path / "timm", False)
    check(what, "hf", tmp_path / "hf", False)


def test_omma_reads_its_own_with_the_classifier(tmp_path):
    what = exporting({"name": "vit-ti/8", "depth": 1})
    check(what, "safetensors", tmp_path / "out", True)


def test_lora_is_merged_before(tmp_path):
    what = exporting({"name": "vit-ti/8", "depth": 1}, "lora")
    model = Model(what.encoder, what.preprocess, extras=what.extras)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (40, 40), "red").save(images / "red.png")
    written = export(model, "timm", tmp_path / "out", images)
    assert written.difference < 1e-4 * written.scale
    assert "lora" not in (tmp_path / "out" / "config.json").read_text()


def test_a_wrong_head_is_noticed():
    what = exporting({"name": "vit-ti/8", "depth": 1})
    wrong = Classifier(classes=CLASSES, weight=what.classifier.weight * 1.01)
    reopened = Reopened(lambda x: outputs(what.encoder(x), wrong), "any")
    with torch.no_grad():
        result = compare(what.encoder, reopened, networks.noise(what.encoder), what.classifier)
    assert result.difference == 0
    assert not result.within(1e-3)
