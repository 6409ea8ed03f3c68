"""Encoders that differ from the file in size, patch, channels or tokens; the report; preprocessing."""

import pytest
import torch
from einops import rearrange
from published_files import build, fitted, images, largest_difference, renamed

from omma import backbones
from omma.data.batches.preprocess import IMAGENET_MEAN
from omma.weights.published import fit, into_model, recognise

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


# ---------------------------------------------------------------- another size, patch, channels
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit/8", {"interpolation": "offset"}),  # without a classifier, as DINO's
        ("vit/8", {"registers": 2}),
        ("vit/8", {"registers": 2, "prefix_positions": False}),
        ("vit/8", {"class_token": False, "pool": "mean"}),
        ("deit/8", {}),
        ("beit/8", {}),
        ("beit/8", {"bias": "shared"}),
        ("eva02/8", {"mlp": "swiglu", "fused": True}),
        ("cait-xxs24", {"depth": 2, "patch": 8}),
    ],
)
def test_loading_at_another_size_equals_running_at_it(name, options):
    """A backbone interpolates positions in each forward pass; loading into another size does it once."""
    theirs = build(name, **options)
    ours, report = fitted(theirs.state_dict(), image_size=48)
    assert ours.image_size == 48
    assert largest_difference(ours, theirs, images(size=48)) < 1e-4
    assert report.interpolated
    assert "4x4 -> 6x6" in "\n".join(report.lines())


def test_swins_windows_are_interpolated():
    shape = {"dim": 32, "depths": (2, 2), "heads": (2, 4)}
    theirs = build("swin", 56, **shape)
    ours, report = fitted(theirs.state_dict(), window=4)
    assert ours.layers[0].blocks[0].attn.relative_position_bias_table.shape == (49, 2)
    assert len(report.interpolated) == 4
    assert "7x7 -> 4x4 (4)" in "\n".join(report.lines())
    smooth = theirs.state_dict()
    for name in report.interpolated:  # a bias that grows with the distance stays so
        smooth[name] = (
            torch.linspace(-3, 3, 13)[:, None, None].expand(13, 13, smooth[name].shape[1]).flatten(0, 1)
        )
    ours, _ = fitted(smooth, window=4)
    prepared_ = ours.state_dict()[report.interpolated[0]].view(7, 7, 2)
    assert (prepared_[0] - prepared_[0, 0]).abs().max() < 1e-5  # the same along a row
    assert (prepared_.diff(dim=0) > 0.5).all()


def test_a_larger_patch_on_a_larger_image_gives_the_same_features():
    theirs = build("vit/8")
    ours, report = fitted(theirs.state_dict(), image_size=64, name="vit/16")
    assert ours.patch == 16
    x = images()
    each = rearrange(
        x, "b c (h p) (w q) -> (b h w) c p q", p=8, q=8
    )  # resize each patch by itself, as the kernel is resampled
    each = torch.nn.functional.interpolate(each, size=16, mode="bilinear", antialias=True)
    larger = rearrange(each, "(b h w) c p q -> b c (h p) (w q)", h=4, w=4)
    assert largest_difference(theirs, ours, x, larger) < 1e-4
    assert report.interpolated == ("patch_embed.proj.weight",)


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("name", ["vit/8", "swin"])
def test_images_with_equal_channels_give_the_same_features(channels, name):
    shape = {"dim": 32, "depths": (2, 2), "heads": (2, 4), "window": 2} if name == "swin" else {}
    theirs = build(name, 16 if shape else 32, **shape)
    ours, report = fitted(theirs.state_dict(), channels=channels)
    x, y = images(3, equal=True), images(channels, equal=True)
    assert largest_difference(theirs, ours, x, y) < 1e-4
    assert report.inflated == ("patch_embed.proj.weight",)
    if channels == 1:
        kernel = theirs.state_dict()["patch_embed.proj.weight"]
        assert torch.allclose(ours.patch_embed.proj.weight, kernel.sum(1, keepdim=True), atol=1e-5)


def test_other_tokens():
    theirs = build("vit/8").state_dict()
    without = build("vit/8", seed=1, class_token=False, pool="mean")
    report = fit(recognise(theirs, source="file.pth"), without)
    assert "cls_token" in report.unused
    assert torch.equal(without.pos_embed[0], theirs["pos_embed"][0, 1:])
    more = build("vit/8", seed=1, registers=2)
    before = more.reg_token.clone()
    report = fit(recognise(theirs, source="file.pth"), more)
    assert report.missing == ("reg_token",)
    assert torch.equal(more.reg_token, before)
    assert torch.equal(more.pos_embed[0, [0]], theirs["pos_embed"][0, [0]])
    assert not more.pos_embed[0, 1:3].any()
    plain = build("vit/8", seed=1, prefix_positions=False)
    fit(recognise(theirs, source="file.pth"), plain)
    assert (
        largest_difference(plain, build("vit/8"), images()) < 1e-5
    )  # its position was added to the class token


def test_the_last_norm_moves_with_the_pooling():
    theirs = build("vit/8").state_dict()
    ours = build("vit/8", seed=1, pool="mean_fc_norm")
    report = fit(recognise(theirs, source="file.pth"), ours)
    assert torch.equal(ours.fc_norm.weight, theirs["norm.weight"])
    assert not report.missing
    assert not report.unused


def test_half_precision_becomes_single():
    theirs = {name: x.half() for name, x in build("vit/8").state_dict().items()}
    ours, report = fitted(theirs, image_size=48, channels=5)
    assert {x.dtype for x in ours.state_dict().values()} == {torch.float32}
    assert report.share == 1


def test_the_files_tensors_are_not_shared():
    theirs = build("vit/8").state_dict()
    ours, _, _ = into_model(theirs, source="file.pth")
    assert all(p.requires_grad for p in ours.parameters())
    with torch.no_grad():
        ours.cls_token.zero_()
    assert theirs["cls_token"].any()


# ---------------------------------------------------------------- the report, and the input
def test_the_report_names_every_tensor_once():
    theirs = build("vit/8").state_dict()
    state = renamed(theirs, (r"\.attn\.qkv\.", ".attn.q."), prefix="module.")
    for i in range(2):
        for part in ("weight", "bias"):
            whole = state.pop(f"module.blocks.{i}.attn.q.{part}")
            for p, x in zip("qkv", whole.chunk(3), strict=True):
                state[f"module.blocks.{i}.attn.{p}_proj.{part}"] = x
    ours = build("vit/8", 48, seed=1, channels=5, registers=1)
    report = fit(recognise(state | {"module.head.weight": torch.zeros(2)}, source="file.pth"), ours)
    parts = (report.matched, report.converted, report.interpolated, report.inflated, report.missing)
    assert sorted(n for part in parts for n in part) == sorted(ours.state_dict())
    assert report.inflated == ("patch_embed.proj.weight",)
    assert report.interpolated == ("pos_embed",)
    assert report.missing == ("reg_token",)
    assert report.unused == ("module.head.weight",)
    text = "\n".join(report.lines())
    for words in (
        "99.",
        "4 converted (4 fused)",
        "4x4 -> 6x6",
        "from 3 to 5 channels",
        "reg_token",
        "head.weight",
    ):
        assert words in text


def test_a_network_of_a_paper_gets_its_name():
    ours, _, report = into_model(
        backbones.build(name="vit-s/16", image_size=64).state_dict(), source="file.pth"
    )
    assert ours.spec() == {"name": "vit-s/16", "image_size": 64, "channels": 3, "interpolation": "offset"}
    assert report.lines()[0].startswith(
        "vit-s/16 from file.pth (timm's names): 21.6M of 21.6M parameters (100 %)"
    )


def test_preprocessing_is_read_or_usual_for_the_network():
    state = build("vit/8").state_dict()

    def prepared(state=state, **arguments):
        _, prepared_, report = into_model(state, source="file.pth", **arguments)
        return prepared_, report.notes[-1]

    prepared_, note = prepared()
    assert (prepared_.size, prepared_.mean, prepared_.crop_share) == (32, IMAGENET_MEAN, 0.875)
    assert set(prepared_.low) == {0.0}
    assert set(prepared_.high) == {255.0}
    assert "ImageNet" in note
    dino = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_center_crop": True}
    dino |= {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    prepared_, note = prepared(preprocessor=dino)
    assert (prepared_.size, prepared_.mean, prepared_.std, prepared_.crop_share) == (
        224,
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        0.875,
    )
    assert "preprocessor_config" in note
    beit = {"size": 224, "do_center_crop": False, "crop_size": 200, "do_normalize": False}
    prepared_, _ = prepared(preprocessor=beit)
    assert (prepared_.size, prepared_.mean, prepared_.std, prepared_.crop_share) == (
        224,
        (0.0,) * 3,
        (1.0,) * 3,
        1.0,
    )
    whole = {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}  # of values 0..255
    prepared_, _ = prepared(preprocessor=whole)
    assert (prepared_.high[0], prepared_.mean[0], prepared_.std[0]) == (255.0, 0.5, 0.2)
    for wrong in ({"image_std": [0.0] * 3}, {"size": 10**9}, {"image_mean": [float("nan")] * 3}):
        with pytest.raises(ValueError, match="is expected"):
            prepared(preprocessor=wrong)
    cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.9, "input_size": (3, 40, 40)}
    prepared_, note = prepared(timm_cfg=cfg)
    assert (prepared_.size, prepared_.mean, prepared_.std, prepared_.crop_share) == (
        40,
        (0.5,) * 3,
        (0.25,) * 3,
        40 / 44,
    )
    assert "timm" in note
    prepared_, _ = prepared(build("vit/8", channels=2).state_dict(), timm_cfg=cfg)
    assert (prepared_.channels, prepared_.mean, prepared_.std, prepared_.low) == (
        2,
        (0.5, 0.5),
        (0.25, 0.25),
        (0.0, 0.0),
    )
    assert prepared(build("beit/8").state_dict())[0].mean == (0.5,) * 3
    assert prepared(build("eva02/8", mlp="swiglu", fused=True).state_dict())[0].mean == CLIP_MEAN
    assert prepared(build("vit/8", norm_pre=True).state_dict())[0].mean == CLIP_MEAN
