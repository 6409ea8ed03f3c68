"""Weights of transformers' classes: as they are in memory and as they are saved, with and without heads."""

import json
import re

import pytest
import safetensors.torch
import torch
from published_files import SMALL, randomised

from omma.weights.published import into_model

transformers = pytest.importorskip("transformers", reason="transformers (bench group) is not installed")

RELATIVE = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True, "use_mask_token": True}
DINO3 = {"num_register_tokens": 4, "layer_norm_eps": 1e-5}
SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
MAE = {"mask_ratio": 0.0, "decoder_num_hidden_layers": 1}
TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 99,
    "eos_token_id": 98,
}
# class of the network, class of its config, what that is told, the name that omma gives it
CASES = [
    ("ViTModel", "ViTConfig", {}, "vit/8"),
    ("ViTModel", "ViTConfig", {"qkv_bias": False, "layer_norm_eps": 1e-3}, "vit/8"),
    ("ViTForImageClassification", "ViTConfig", {}, "vit/8"),
    ("DeiTModel", "DeiTConfig", {}, "deit/8"),
    ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {}, "deit/8"),
    ("BeitModel", "BeitConfig", RELATIVE, "beit/8"),
    ("BeitForImageClassification", "BeitConfig", RELATIVE, "beit/8"),
    ("BeitModel", "BeitConfig", SHARED | {"use_mean_pooling": False}, "beit/8"),
    ("BeitForMaskedImageModeling", "BeitConfig", SHARED, "beit/8"),
    ("SwinModel", "SwinConfig", SWIN, "swin/w4"),
    ("SwinForImageClassification", "SwinConfig", SWIN, "swin/w4"),
    ("Dinov2Model", "Dinov2Config", {}, "vit/8"),
    ("Dinov2ForImageClassification", "Dinov2Config", {"use_swiglu_ffn": True}, "vit/8"),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}, "vit/8"),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"use_swiglu_ffn": True}, "vit/8"),
    ("DINOv3ViTModel", "DINOv3ViTConfig", DINO3, "dinov3/8"),
    ("DINOv3ViTModel", "DINOv3ViTConfig", DINO3 | {"use_gated_mlp": True, "hidden_act": "silu"}, "dinov3/8"),
    ("CLIPVisionModel", "CLIPVisionConfig", {}, "vit/8"),
    ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {"hidden_act": "gelu"}, "vit/8"),
    ("CLIPModel", "CLIPConfig", {}, "vit/8"),
    ("ViTMAEModel", "ViTMAEConfig", MAE, "vit/8"),
    ("ViTMAEForPreTraining", "ViTMAEConfig", MAE, "vit/8"),
]


def network(kind, config, changes, seed=0):
    made = getattr(transformers, config)
    if config == "CLIPConfig":
        made = made(vision_config=SMALL | changes, text_config=TEXT, projection_dim=32)
    else:
        made = made(**(changes if config == "SwinConfig" else SMALL | changes))
    return randomised(getattr(transformers, kind)(made), seed)


@torch.no_grad()
def features(network, images):
    """What omma calls pooled and patches, from transformers."""
    kind = type(network).__name__
    base = network if kind.endswith("Model") else network.base_model
    base = getattr(network, "vision_model", base)
    if "MAE" in kind:
        count = base.embeddings.patch_embeddings.num_patches
        out = base(images, noise=torch.arange(count)[None].expand(len(images), -1).float())
    else:
        out = base(images)
    x = out.last_hidden_state
    if kind.startswith("Swin"):
        return x.mean(1), x
    if kind == "BeitForMaskedImageModeling":
        x = network.layernorm(x)
    elif "CLIP" in kind:
        x = base.post_layernorm(x)
    prefix = 2 if kind.startswith("DeiT") else 1 + getattr(base.config, "num_register_tokens", 0)
    mean = kind.startswith("Beit") and network.config.use_mean_pooling
    pooled = out.pooler_output if mean else x[:, 0]
    return x[:, 1:].mean(1) if pooled is None else pooled, x[:, prefix:]


def same(encoder, network, size, tolerance=1e-4):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    pooled, patches = features(network, x)
    with torch.no_grad():
        ours = encoder(x)
    assert (ours.patches - patches).abs().max() < tolerance
    assert (ours.pooled - pooled).abs().max() < tolerance


@pytest.mark.parametrize("stored", ["saved", "in memory"])
@pytest.mark.parametrize(("kind", "config", "changes", "name"), CASES)
def test_features_are_transformers(kind, config, changes, name, stored, tmp_path):
    theirs = network(kind, config, changes)
    if stored == "saved":
        theirs.save_pretrained(tmp_path)
        state = safetensors.torch.load_file(tmp_path / "model.safetensors")
        settings = json.loads((tmp_path / "config.json").read_text())
    else:
        state, settings = theirs.state_dict(), theirs.config.to_dict()
    encoder, _, report = into_model(state, source="theirs", config=settings)
    assert report.share == 1
    assert encoder.name == name
    same(encoder, theirs, encoder.image_size)
    every = {*report.matched, *report.converted}
    assert every == encoder.state_dict().keys()
    heads = r"mask_token|classifier|pooler\.dense|lm_head|^decoder|^text_|projection|logit_scale|_index$"
    assert all(re.search(heads, name) for name in report.unused)


TI = {"hidden_size": 192, "num_attention_heads": 3}


@pytest.mark.parametrize(
    ("kind", "config", "changes"),
    [
        ("ViTModel", "ViTConfig", TI),
        ("DeiTModel", "DeiTConfig", TI),
        ("BeitForImageClassification", "BeitConfig", TI | RELATIVE),
        ("SwinModel", "SwinConfig", SWIN),
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", TI),
        ("DINOv3ViTModel", "DINOv3ViTConfig", TI | DINO3),
        ("CLIPVisionModel", "CLIPVisionConfig", TI),
        ("ViTMAEForPreTraining", "ViTMAEConfig", TI | MAE),
    ],
)
def test_usual_widths_need_no_config(kind, config, changes):
    theirs = network(kind, config, changes)
    encoder, _, report = into_model(theirs.state_dict(), source="theirs")
    assert report.share == 1
    same(encoder, theirs, 64 if kind == "SwinModel" else 32)
    assert any("quickgelu assumed" in note for note in report.notes) == (kind == "CLIPVisionModel")


def test_an_unusual_width_needs_its_config():
    theirs = network("ViTModel", "ViTConfig", {})
    with pytest.raises(ValueError, match=r"64 wide .*config.json"):
        into_model(theirs.state_dict(), source="theirs")


@pytest.mark.parametrize(
    ("kind", "config", "changes", "words"),
    [
        ("ViTModel", "ViTConfig", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("DINOv3ViTModel", "DINOv3ViTConfig", DINO3 | {"use_gated_mlp": True}, "gates are silu"),
        ("DINOv3ViTModel", "DINOv3ViTConfig", DINO3 | {"key_bias": True}, "keys have a bias"),
        ("DINOv3ViTModel", "DINOv3ViTConfig", DINO3 | {"rope_theta": 10_000.0}, "base 10000"),
        ("SwinModel", "SwinConfig", SWIN | {"layer_norm_eps": 1e-3}, "eps 0.001"),
    ],
)
def test_what_omma_lacks_is_refused(kind, config, changes, words):
    theirs = network(kind, config, changes)
    with pytest.raises(ValueError, match=words) as error:
        into_model(theirs.state_dict(), source="theirs", config=theirs.config.to_dict())
    assert "\n" not in str(error.value)
