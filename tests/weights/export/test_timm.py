"""Folders for timm: every form of our networks has a twin that computes the same from the same parameters."""

import json
from dataclasses import replace

import pytest
import torch
from export_networks import network, noise, preprocess_of

from omma.weights.export import compare, timm_, timm_twin, twin

timm = pytest.importorskip("timm", reason="timm is not installed")

FORMS = [
    ("vit-ti/16", {}),
    ("vit-ti/8", {"pool": "mean", "channels": 6}),
    ("vit-ti/8", {"pool": "mean_fc_norm", "positions": "sincos"}),
    ("vit-ti/8", {"registers": 3}),
    ("vit-ti/8", {"registers": 3, "prefix_positions": False, "layer_scale": 0.3}),
    ("vit-ti/8", {"positions": "none", "class_token": False, "pool": "mean"}),
    ("vit-ti/8", {"mlp": "swiglu"}),
    ("vit-ti/8", {"mlp": "swiglu", "layer_scale": 0.2, "hidden": 500}),
    ("vit-ti/8", {"norm_pre": True, "mlp": "quickgelu", "eps": 1e-5}),
    ("vit-ti/8", {"eps": 1e-5}),
    ("vit-ti/8", {"qkv_bias": False, "hidden": 333}),
    ("deit-ti/16", {}),
    ("deit-ti/16", {"pool": "mean"}),
    ("dinov2-s/14", {"registers": 4, "prefix_positions": False}),
    ("beit-ti/16", {}),
    ("beit-ti/16", {"pool": "token", "positions": "learned", "layer_scale": None, "qkv_bias": False}),
    ("beit-ti/16", {"pool": "mean_fc_norm", "bias": "shared"}),
    ("beit-ti/16", {"mlp": "split_swiglu", "sub_norm": True}),
    ("eva02-ti/14", {}),
    ("eva02-ti/14", {"pool": "mean", "attn_norm": True}),
    ("eva02-b/14", {"dim": 192, "heads": 3, "hidden": 512, "pool": "mean_fc_norm"}),
    ("eva02-ti/14", {"rope": "none", "mlp": "split_swiglu", "registers": 2, "layer_scale": 0.1}),
    ("dinov3-s/16", {}),
    ("dinov3-s+/16", {"dim": 192, "heads": 3, "hidden": 384, "pool": "mean"}),
    ("dinov3-s/16", {"eps": 1e-6, "registers": 0}),
    ("dinov3-s/16", {"rope": "indexed", "registers": 0}),
    ("cait-xxs24", {}),
    ("swin-t", {"dim": 24, "depths": (2, 2), "heads": (1, 2), "window": 4}),
    ("timm:test_vit", {"image_size": 160}),
    ("timm:test_resnet", {}),
]


@pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
def test_timm_reads_the_folder_and_computes_the_same(name, options, tmp_path):
    encoder = network(name, **options)
    timm_.write(encoder, preprocess_of(encoder), tmp_path / "x")
    reopened = timm_.reopen(encoder, preprocess_of(encoder), tmp_path / "x")
    found = compare(encoder, reopened, noise(encoder, reopened.sizes))
    assert found.within(1e-5), found
    theirs = timm_twin(encoder)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in encoder.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit-ti/8", {"positions": "rope"}),
        ("vit-ti/8", {"mixer": "linear"}),
        ("vit-ti/8", {"eps": 1e-4}),
        ("vitc-15mf", {}),
        ("swin-t", {"depths": (2, 2), "heads": (3, 6), "image_size": 96}),  # windows of 7 do not fill 24
        ("timm:test_resnet", {"non_local": (2,)}),
    ],
    ids=str,
)
def test_what_timm_has_not(name, options):
    with pytest.raises(ValueError, match=r"^timm has .*: export .* as onnx or torch instead$"):
        twin(network(name, **options))


def test_a_new_head_is_the_only_thing_that_fine_tuning_draws(tmp_path):
    encoder = network("vit-ti/8")
    timm_.write(encoder, preprocess_of(encoder), tmp_path / "x")
    model = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True, num_classes=7)
    (x,) = noise(encoder)
    assert model(x).shape == (2, 7)
    assert torch.equal(model.blocks[1].mlp.fc2.weight, encoder.blocks[1].mlp.fc2.weight)


@pytest.mark.parametrize(("white", "words"), [(65535.0, "values / 65535"), (None, "raw values")])
def test_images_are_prepared_as_omma_does(tmp_path, white, words):
    encoder = network("vit-ti/8")
    sixteen_bit = replace(preprocess_of(encoder, low=100.0, high=4000.0), full_scale=white)
    timm_.write(encoder, sixteen_bit, tmp_path / "x")
    cfg = json.loads((tmp_path / "x" / "config.json").read_text())["pretrained_cfg"]
    assert int(32 / cfg["crop_pct"]) == round(32 / 0.9)  # timm cuts, omma rounds
    assert cfg["input_size"] == [3, 32, 32]
    value = 1234.0  # raw, of the first channel
    wanted = ((value - 100) / 3900 - 0.4) / 0.2
    assert (value / (white or 1) - cfg["mean"][0]) / cfg["std"][0] == pytest.approx(wanted)
    notes = timm_.reopen(encoder, sixteen_bit, tmp_path / "x").notes
    assert any(words in note for note in notes)
