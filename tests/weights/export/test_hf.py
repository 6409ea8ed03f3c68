"""Folders for transformers: AutoModel reads them without a tensor missing, and computes the same."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from export_networks import network, noise, preprocess_of
from PIL import Image

import omma
from omma.data.batches.preprocess import apply
from omma.weights.export import compare, hf
from omma.weights.export.hf_forms import hf_network

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

FORMS = [
    ("ViT", "vit-ti/16", {}),
    ("ViT", "vit-ti/8", {"pool": "mean", "channels": 6, "hidden": 333, "qkv_bias": False}),
    ("ViT", "vit-ti/8", {"positions": "sincos", "eps": 1e-4, "mlp": "quickgelu"}),
    ("DeiT", "deit-ti/16", {}),
    ("DeiT", "deit-ti/16", {"pool": "mean"}),
    ("Dinov2", "dinov2-s/14", {}),
    ("Dinov2", "vit-ti/8", {"mlp": "swiglu", "hidden": 512, "positions": "none"}),
    ("Dinov2WithRegisters", "dinov2-s/14", {"registers": 4, "prefix_positions": False}),
    ("Dinov2WithRegisters", "vit-ti/8", {"registers": 3}),  # no layer scale, registers with positions
    ("CLIPVision", "vit-ti/8", {"norm_pre": True, "mlp": "quickgelu", "eps": 1e-5}),
    ("CLIPVision", "vit-ti/8", {"norm_pre": True, "pool": "mean"}),
    ("Beit", "beit-ti/16", {}),
    ("Beit", "beit-ti/16", {"pool": "token", "positions": "learned", "layer_scale": None, "qkv_bias": False}),
    ("Beit", "beit-ti/16", {"pool": "mean_fc_norm", "bias": "shared"}),
    ("DINOv3ViT", "dinov3-s/16", {}),
    ("DINOv3ViT", "dinov3-s+/16", {"dim": 192, "heads": 3, "hidden": 384, "pool": "mean"}),
    ("DINOv3ViT", "dinov3-s/16", {"mlp": "swiglu", "registers": 0, "layer_scale": None}),
    ("Swin", "swin-t", {"dim": 24, "depths": (2, 2), "heads": (1, 2), "window": 4}),
]


@pytest.mark.parametrize(("kind", "name", "options"), FORMS, ids=str)
def test_transformers_reads_the_folder_and_computes_the_same(kind, name, options, tmp_path):
    encoder = network(name, **options)
    assert hf_network(encoder).kind == kind
    hf.write(encoder, preprocess_of(encoder), tmp_path / "x")
    reopened = hf.reopen(encoder, preprocess_of(encoder), tmp_path / "x")
    assert compare(encoder, reopened, noise(encoder, reopened.sizes)).within(1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit-ti/8", {"positions": "rope"}),
        ("vit-ti/8", {"mixer": "fourier"}),
        ("vit-ti/8", {"pool": "mean_fc_norm"}),
        ("vit-ti/8", {"class_token": False, "pool": "mean"}),
        ("vit-ti/8", {"mlp": "swiglu", "hidden": 500}),
        ("deit-ti/8", {"registers": 2}),
        ("eva02-ti/14", {}),
        ("cait-xxs24", {}),
        ("vitc-15mf", {}),
        ("swin-t", {"depths": (2, 2), "heads": (3, 6)}),  # windows of 7 in a stage of 4
    ],
    ids=str,
)
def test_what_transformers_has_not(name, options):
    with pytest.raises(ValueError, match=r"^transformers has .*: export .* instead$"):
        hf_network(network(name, **options))


def test_a_missing_tensor_is_told(tmp_path):
    encoder = network("vit-ti/8")
    hf.write(encoder, preprocess_of(encoder), tmp_path)
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    del state["layernorm.weight"]
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys .layernorm\.weight"):
        hf.reopen(encoder, preprocess_of(encoder), tmp_path)


@pytest.mark.parametrize(("white", "high"), [(65535.0, 4000.0), (1.0, 0.5)])
def test_the_full_scale_of_a_model_is_that_of_the_processor(tmp_path, white, high):
    encoder = network("vit-ti/8")
    own = replace(preprocess_of(encoder, high=high), full_scale=white)
    hf.write(encoder, own, tmp_path)
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    value = 0.3 * high
    theirs = (value * processor["rescale_factor"] - processor["image_mean"][0]) / processor["image_std"][0]
    assert theirs == pytest.approx((0.3 - own.mean[0]) / own.std[0])
    if white == 65535.0:
        again = omma.load(tmp_path).preprocess
        assert (again.full_scale, again.high[0]) == (white, white)
        assert (value / white - again.mean[0]) / again.std[0] == pytest.approx(theirs)


def test_images_are_prepared_as_omma_does(tmp_path):
    pytest.importorskip("torchvision", reason="transformers prepares images with torchvision")
    encoder = network("vit-ti/8")
    preprocess = preprocess_of(encoder)
    hf.write(encoder, preprocess, tmp_path)
    array = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    array = np.array(Image.fromarray(array).resize((120, 80)))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
    ours = apply(array, preprocess)[None]
    assert theirs.shape == ours.shape
    assert torch.allclose(theirs, ours, atol=0.05)  # of deviations; both resize in 8 bits
