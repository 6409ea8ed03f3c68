"""Positions at other image sizes are interpolated as the code does that a file is from."""

import pytest
import torch
from export_networks import network, preprocess_of
from published_files import SMALL, build, fitted, images, largest_difference, randomised, renamed

import omma
from omma import backbones
from omma.weights import store
from omma.weights.export import hf, timm_
from omma.weights.export.hf_forms import hf_network
from omma.weights.published import into_model

HEAD = {"head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5)}
LAST = {"module.head.last_layer.weight_g": torch.zeros(5, 1)}
MASK = {"mask_token": torch.zeros(1, 192)}
REGISTERS = {"registers": 4, "prefix_positions": False, "layer_scale": 0.1}


def files():
    """A name, a file's tensors, timm's settings beside it, and how its code interpolates."""
    plain = build("vit/8").state_dict()
    scaled = build("vit/8", layer_scale=0.1).state_dict()
    registers = build("vit/8", **REGISTERS).state_dict()
    fixed = backbones.build(name="vit-ti/8", image_size=32, depth=2, positions="sincos").state_dict()
    return {
        "DINO's or iBOT's backbone": (plain, None, "offset"),
        "DINO's checkpoint": (renamed(plain, prefix="module.backbone.") | LAST, None, "offset"),
        "iBOT's teacher": (plain | HEAD | {"masked_embed": torch.zeros(1, 192)}, None, "offset"),
        "DINOv2's": (scaled | MASK, None, "offset"),
        "DINOv2's with registers": (registers | MASK, None, "antialias"),
        "timm's DINO": (plain, {"architecture": "vit_small_patch16_224"}, "antialias"),
        "timm's DINOv2": (scaled, None, "antialias"),
        "a classifier of timm": (plain | HEAD, None, "antialias"),
        "MAE's, whose positions are fixed": (
            fixed,
            None,
            "antialias",
        ),
    }


@pytest.mark.parametrize("case", sorted(files()))
def test_what_a_file_says(case):
    state, cfg, expected = files()[case]
    encoder, _, report = into_model(state, source="file.pth", timm_cfg=cfg)
    assert encoder.interpolation == expected
    assert any("as in DINO's code" in line for line in report.lines()) == (expected == "offset")


@pytest.mark.parametrize(("registers", "expected"), [(0, "offset"), (4, "antialias")])
def test_loading_at_another_size_equals_running_at_it(registers, expected):
    options = REGISTERS if registers else {"layer_scale": 0.1}
    theirs = build("vit/8", **options, interpolation=expected)
    ours, _ = fitted(theirs.state_dict() | MASK, image_size=48)
    assert largest_difference(ours, theirs, images(size=48)) < 1e-4


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ViT", "plain"), ("Dinov2", "plain"), ("Dinov2WithRegisters", "antialias"), ("CLIPVision", "plain")],
)
def test_transformers_at_another_size(kind, expected):
    """The features are those of transformers' own network, at sizes smaller and larger than its own."""
    transformers = pytest.importorskip("transformers", reason="transformers (bench group) is not installed")
    config = getattr(transformers, f"{kind}Config")(**SMALL)
    theirs = randomised(getattr(transformers, f"{kind}Model")(config))
    encoder, _, _ = into_model(theirs.state_dict(), source="theirs", config=config.to_dict())
    assert encoder.interpolation == expected
    other = {} if kind.startswith("Dinov2") else {"interpolate_pos_encoding": True}
    for height, width in ((24, 16), (32, 56)):
        x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            tokens = theirs(x, **other).last_hidden_state
            ours = encoder(x)
            inner = getattr(theirs, "vision_model", theirs)
            tokens = inner.post_layernorm(tokens) if kind == "CLIPVision" else tokens
        assert (ours.patches - tokens[:, encoder.prefix :]).abs().max() < 1e-4


def test_it_is_saved_with_the_network(tmp_path):
    encoder = network("vit-ti/8", interpolation="offset")
    store.save(tmp_path, encoder, preprocess_of(encoder))
    again = omma.load(tmp_path / "model.safetensors").encoder
    assert again.interpolation == "offset"
    assert largest_difference(encoder, again, images(size=48)) == 0


# ---------------------------------------------------------------- export
@pytest.mark.parametrize("how", ["plain", "offset"])
def test_timm_reads_one_size_where_it_would_interpolate_otherwise(how, tmp_path):
    pytest.importorskip("timm", reason="timm (dev group) is not installed")
    encoder = network("vit-ti/8", interpolation=how)
    timm_.write(encoder, preprocess_of(encoder), tmp_path / "x")
    reopened = timm_.reopen(encoder, preprocess_of(encoder), tmp_path / "x")
    assert reopened.sizes == "fixed"
    assert any("interpolates positions differently" in note for note in reopened.notes)
    with pytest.raises(AssertionError):
        reopened.run(torch.zeros(1, 3, 48, 48))


@pytest.mark.parametrize(
    ("options", "how", "same"),
    [
        ({"layer_scale": 0.1}, "plain", True),
        ({"layer_scale": 0.1}, "antialias", False),
        (REGISTERS, "antialias", True),
        (REGISTERS, "offset", False),
        ({}, "plain", True),
        ({}, "offset", False),
        ({"norm_pre": True}, "plain", True),
    ],
)
def test_transformers_says_if_it_interpolates_otherwise(options, how, same):
    pytest.importorskip("transformers", reason="transformers (bench group) is not installed")
    form = hf_network(network("vit-ti/8", **options, interpolation=how))
    assert any("differently" in note for note in form.notes) != same
    assert form.sizes == ("multiples" if same and "layer_scale" in options else "fixed")


@pytest.mark.parametrize(("options", "how"), [({"layer_scale": 0.1}, "plain"), (REGISTERS, "antialias")])
def test_transformers_at_multiples_of_the_patch(options, how, tmp_path):
    pytest.importorskip("transformers", reason="transformers (bench group) is not installed")
    encoder = network("vit-ti/8", **options, interpolation=how)
    hf.write(encoder, preprocess_of(encoder), tmp_path / "x")
    reopened = hf.reopen(encoder, preprocess_of(encoder), tmp_path / "x")
    x = torch.randn(2, 3, 24, 56)
    with torch.no_grad():
        assert (encoder(x).patches - reopened.run(x)[1]).abs().max() < 1e-4
