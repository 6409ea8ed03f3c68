"""Published weights in timm's names and in those of official code: recognised, converted, equal features."""

import pytest
import torch
from published_files import randomised, same

from omma import backbones
from omma.weights.published import into_model, recognise

timm = pytest.importorskip("timm", reason="timm (dev group) is not installed")


def network(name, seed=0, **options):
    return randomised(timm.create_model(name, num_classes=0, **options), seed)


def ti(name="vit_tiny_patch16_224", **options):
    return network(name, **({"img_size": 32, "patch_size": 8, "depth": 2} | options))


def from_file(state, **arguments):
    """The backbone of a complete file: every parameter is filled, every tensor accounted for."""
    encoder, prepared, report = into_model(state, source="file.pth", **arguments)
    assert report.share == 1
    assert not report.missing
    recognised = recognise(state, arguments.get("config"))
    used = {raw for origin in recognised.origin.values() for raw in origin}
    assert used.isdisjoint(report.unused)
    assert used | set(report.unused) == state.keys()
    assert prepared.size == encoder.image_size
    return encoder, report


# ---------------------------------------------------------------- timm's networks
CLIP = "vit_base_patch16_clip_quickgelu_224"
WIDE = {"embed_dim": 192, "num_heads": 3, "img_size": 32, "patch_size": 8, "depth": 2}
TIMM = [
    ("vit_tiny_patch16_224", {}, "vit/8"),
    ("vit_tiny_patch16_224", {"global_pool": "avg"}, "vit/8"),
    ("vit_tiny_patch16_224", {"depth": 12, "patch_size": 16, "img_size": 64}, "vit-ti/16"),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}, "vit/8"),
    ("vit_tiny_patch16_224", {"no_embed_class": True, "reg_tokens": 3}, "vit/8"),
    ("vit_tiny_patch16_224", {"reg_tokens": 3, "in_chans": 5, "qkv_bias": False}, "vit/8"),
    ("deit_tiny_distilled_patch16_224", {"depth": 12, "patch_size": 16}, "deit-ti/16"),
    ("vit_small_patch14_reg4_dinov2", WIDE, "vit/8"),
    ("vit_small_patch14_dinov2", {"patch_size": 14, "img_size": 56, "depth": 12}, "dinov2-s/14"),
    ("vit_giant_patch14_dinov2", WIDE, "vit/8"),
    (CLIP, WIDE, "vit/8"),
    ("beit_base_patch16_224", WIDE, "beit/8"),
    ("beit_base_patch16_224", WIDE | {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}, "beit/8"),
    ("eva_giant_patch14_224", WIDE, "eva/8"),
    ("eva02_tiny_patch14_224", {"depth": 12, "patch_size": 14, "img_size": 56}, "eva02-ti/14"),
    ("eva02_base_patch14_448", WIDE, "eva02/8"),
    ("eva02_base_patch16_clip_224", WIDE, "eva02/8"),
    ("vit_small_patch16_dinov3", {"depth": 12, "patch_size": 16}, "dinov3-s/16"),
    ("vit_small_plus_patch16_dinov3_qkvb", {"embed_dim": 192, "num_heads": 3}, "dinov3/8"),
]


@pytest.mark.parametrize(("model", "options", "name"), TIMM)
def test_timms_transformers(model, options, name):
    theirs = ti(model, **options)
    image_size = theirs.patch_embed.img_size[0]
    config = {"image_size": image_size} | ({"hidden_act": "quick_gelu"} if model == CLIP else {})
    encoder, report = from_file(theirs.state_dict(), config=config)
    assert encoder.name == name
    assert encoder.channels == options.get("in_chans", 3)
    assert not report.unused
    same(encoder, theirs, image_size)
    again = backbones.build(**encoder.spec())
    again.load_state_dict(encoder.state_dict())


def test_swin():
    theirs = network(
        "swin_tiny_patch4_window7_224", depths=(2, 2), num_heads=(3, 6), img_size=56, embed_dim=48
    )
    encoder, report = from_file(theirs.state_dict())
    assert (encoder.name, encoder.image_size) == ("swin", 56)
    same(encoder, theirs, 56)
    state = network("swin_tiny_patch4_window7_224").state_dict()
    assert recognise(state).spec == {"name": "swin-t", "image_size": 224, "channels": 3}
    assert not report.unused


def test_cait():
    theirs = network("cait_xxs24_224", depth=2, img_size=64, patch_size=16)
    encoder, report = from_file(theirs.state_dict())
    assert encoder.image_size == 64
    same(encoder, theirs, 64)
    assert not report.unused
    state = {
        n: torch.empty_like(x, device="cpu")
        for n, x in timm.create_model("cait_s24_224").state_dict().items()
    }
    assert recognise(state).spec == {"name": "cait-s24", "image_size": 224, "channels": 3}


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_resnet(model):
    theirs = network(model)
    encoder, _ = from_file(theirs.state_dict())
    assert encoder.name == f"timm:{model}"
    same(encoder, theirs, 64, tolerance=1e-3)
