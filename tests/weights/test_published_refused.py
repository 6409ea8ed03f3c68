"""Damaged, foreign and unsuitable files: each refused in one line that names it; nothing is changed."""

import pytest
import torch
from published_files import build, images, largest_difference

from omma.weights.published import fit, into_model, recognise


def one_line(error):
    assert "\n" not in str(error.value)
    assert "file.pth" in str(error.value)


def test_a_wrong_shape_is_refused():
    state = build("vit/8", depth=12).state_dict()
    state["blocks.7.attn.proj.bias"] = torch.zeros(100)
    with pytest.raises(ValueError, match=r"blocks.7.attn.proj.bias has shape \[100\], not \[192\]") as error:
        into_model(state, source="file.pth")
    one_line(error)
    _, _, report = into_model(state, source="file.pth", allow_partial=True)
    assert report.missing == ("blocks.7.attn.proj.bias",)
    assert report.share > 0.99


def test_what_is_missing_is_refused():
    state = build("vit/8").state_dict()
    for name in ("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.weight"):
        del state[name]
    with pytest.raises(ValueError, match=r"only \d\d.\d\d % .*blocks.1.mlp.fc1.weight") as error:
        into_model(state, source="file.pth")
    one_line(error)
    _, _, report = into_model(state, source="file.pth", allow_partial=True)
    assert report.missing == ("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.weight")
    assert report.share < 0.95
    assert "initial values kept: blocks* (2)" in "\n".join(report.lines())


def test_damage_of_all_kinds_is_reported_in_one_line():
    def changed(**changes):
        return {**build("vit/8").state_dict(), **changes}

    nan = torch.full((192,), float("nan"))
    bad = [
        (changed(**{"norm.weight": nan}), "not finite"),
        (changed(**{"blocks.0.mlp.fc2.weight": torch.zeros(7)}), "matrix"),
        (changed(**{"patch_embed.proj.weight": torch.zeros(192, 3, 8, 6)}), "square patches"),
        (changed(**{"patch_embed.proj.weight": torch.zeros(192, 3, 2, 8, 8)}), "square patches"),
        (changed(**{"patch_embed.proj.weight": torch.zeros(192, 0, 8, 8)}), "square patches"),
        (changed(pos_embed=torch.zeros(1, 14, 192)), "not form a square"),
        (changed(cls_token=torch.zeros(1, 2, 192)), "cls_token has shape"),
        (changed(**{"blocks.200000000.norm1.weight": nan}), r"lacks blocks\.2"),
        (changed(pos_embed=torch.zeros(1, 17, 100)), "pos_embed has shape"),
        (changed(**{"blocks.0.attn.q_norm.weight": nan}), "no counterpart"),
        (changed(**{"blocks.1.mlp.fc1.weight": torch.zeros(384, 192, dtype=torch.int8)}), "quantised"),
        ({k: x for k, x in changed().items() if not k.startswith("blocks.0.")}, "lacks blocks.0"),
        ({k: x for k, x in changed().items() if k != "blocks.0.mlp.fc2.weight"}, "lacks blocks.0.mlp.fc2"),
        ({k: x for k, x in changed().items() if k != "pos_embed"}, "no positions"),
        (build("vit/8", dim=200, heads=5).state_dict(), "200 wide"),
    ]
    for state, words in bad:
        with pytest.raises(ValueError, match=words) as error:
            into_model(state, source="file.pth")
        one_line(error)


@pytest.mark.parametrize(
    "settings",
    [
        {"config": {"num_attention_heads": 0}},
        {"config": {"num_attention_heads": [3]}},
        {"config": {"layer_norm_eps": "1"}},
        {"config": {"vision_config": 3}},
        {"config": {"model_cfg": {"vision_cfg": {"width": 64, "head_width": 0}}}},
        {"preprocessor": {"image_mean": None}},
        {"timm_cfg": {"mean": 0.5}},
    ],
)
def test_malformed_settings_are_reported_in_one_line(settings):
    with pytest.raises(ValueError, match=r"config\.json says|malformed") as error:
        into_model(build("vit/8").state_dict(), source="file.pth", **settings)
    one_line(error)


def test_names_with_line_breaks_are_reported_in_one_line():
    with pytest.raises(ValueError, match="no vision network") as error:
        into_model({"a\nb": torch.zeros(2, 2)}, source="file.pth")
    one_line(error)


def test_config_can_state_the_heads():
    theirs = build("vit/8", dim=200, heads=5)
    ours, _, _ = into_model(theirs.state_dict(), source="file.pth", config={"num_attention_heads": 5})
    assert largest_difference(ours, theirs, images()) < 1e-4


FOREIGN = {
    "a language model": ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "lm_head.weight"),
    "an optimizer": ("state.0.exp_avg", "state.0.exp_avg_sq"),
    "a GAN": ("generator.0.weight", "discriminator.main.0.weight", "generator.conv1.weight"),
    "BERT": ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight"),
    "nothing": (),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_files_are_refused(what):
    with pytest.raises(ValueError, match=r"no vision network .*recognised are ViT") as error:
        into_model({name: torch.zeros(2, 2) for name in FOREIGN[what]}, source="file.pth")
    one_line(error)
    if FOREIGN[what]:
        assert FOREIGN[what][0] in str(error.value)


@pytest.mark.parametrize(
    ("file", "encoder"),
    [
        (("vit/8", {"depth": 3}), ("vit/8", {})),
        (("vit/8", {}), ("vit/8", {"depth": 3})),
        (("vit/8", {}), ("vit/8", {"dim": 96})),
        (("beit/8", {}), ("vit/8", {})),
        (("vit/8", {"layer_scale": 0.1}), ("vit/8", {})),
        (("vit/8", {}), ("swin-t", {})),
    ],
)
def test_another_network_is_refused_untouched(file, encoder):
    recognised = recognise(build(file[0], **file[1]).state_dict(), source="file.pth")
    ours = build(encoder[0], seed=1, **encoder[1])
    before = {name: x.clone() for name, x in ours.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as error:
        fit(recognised, ours)
    one_line(error)
    assert all(torch.equal(x, before[name]) for name, x in ours.state_dict().items())
    report = fit(recognised, ours, allow_partial=True)
    assert report.share < 1 or report.unused
