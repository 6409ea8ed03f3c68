"""DINOv2: the ladder's rows, centring over micro-batches, and who learns how fast."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from omma import backbones
from omma.backbones.vit import ViT
from omma.core.protocols import Batch, Clock, Context, Key
from omma.losses.koleo import koleo
from omma.methods import dinov2

MODEL = backbones.options("vit-l/16")
ROWS = range(len(dinov2.LADDER))


# ---------------------------------------------------------------- the ladder
def flat(recipe):
    """All that a recipe says, by name, but for the row itself."""
    said = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    config, encoder = said.pop("config"), said.pop("encoder")
    said |= {f"config.{f.name}": getattr(config, f.name) for f in dataclasses.fields(config)}
    said |= {f"encoder.{name}": value for name, value in encoder.items()}
    del said["config.ladder"]
    return said


def adapted(kind, row, image_size=224):
    recipe = getattr(dinov2, kind)(image_size, "vit-l/16")
    config = dataclasses.replace(recipe.config, ladder=row)
    return dinov2.adapted(dataclasses.replace(recipe, config=config), MODEL)


SWITCHES = [
    {"lr", "weight_decay_end", "config.momentum", "config.patch_embed_lr"},
    {"drop_path", "encoder.layer_scale", "encoder.drop_uniform", "encoder.drop_exact"},
    {"config.prototypes"},
    {"config.koleo"},
    {"encoder.mlp", "encoder.hidden"},
    {"encoder.patch"},
    {"config.momentum"},
    {"warmup", "warmup_epochs", "config.teacher_temp_warmup"},
    {"batch", "lr"},
    {"config.centring"},
    {"config.untied", "config.head_bottleneck", "config.patch_head_bottleneck"},
]
# the small recipe's patch embedding learns as fast as all else, its warm-up is a share of the run, and its
# two heads are equally wide
ONLY_PAPER = {
    "config.patch_embed_lr", "warmup_epochs", "config.head_bottleneck", "config.patch_head_bottleneck",
}  # fmt: skip


def test_there_is_a_switch_for_each_row_of_table_1():
    assert len(ROWS) == 12
    assert len(SWITCHES) == len(ROWS) - 1
    assert dinov2.LADDER[0].name == "iBOT"
    assert (dinov2.LADDER[-1].knn, dinov2.LADDER[-1].linear) == (82.0, 84.5)


@pytest.mark.parametrize("kind", ["paper", "small"])
@pytest.mark.parametrize("row", ROWS[1:])
def test_a_row_is_one_switch_more_than_the_row_before(kind, row):
    before, after = flat(adapted(kind, row - 1)), flat(adapted(kind, row))
    missing = object()
    names = before.keys() | after.keys()
    changed = {name for name in names if before.get(name, missing) != after.get(name, missing)}
    assert changed == SWITCHES[row - 1] - (ONLY_PAPER if kind == "small" else set())


def test_row_0_is_ibot():
    recipe = adapted("paper", 0)
    config = recipe.config
    assert not config.untied
    assert config.centring == "mean"
    assert config.momentum == pytest.approx(0.996)  # iBOT's
    assert config.koleo == 0
    assert config.layer_decay == config.patch_embed_lr == 1
    assert config.prototypes == 8192  # iBOT's
    assert recipe.batch == 1024
    assert dict(recipe.encoder) == {"init": "dinov2", "interpolation": "offset"}  # iBOT's code has the latter
    assert recipe.drop_path == 0
    assert adapted("paper", 1).config.momentum == pytest.approx(0.992)  # the published code's


@pytest.mark.parametrize("kind", ["paper", "small"])
def test_the_last_row_is_the_recipe(kind):
    """With patches of 14 for 16; SwiGLU of as many parameters, and LayerScale, where the recipe has none."""
    found, whole = flat(adapted(kind, 11)), flat(getattr(dinov2, kind)(224, "vit-l/16"))
    assert found.pop("encoder.patch") == 14
    if kind == "small":
        assert found.pop("encoder.mlp") == "swiglu"
        assert found.pop("encoder.hidden") == 2736  # the published code's, for 4096
        assert found.pop("encoder.layer_scale") == 1e-5
        assert found.pop("encoder.drop_uniform") is True
        assert found.pop("encoder.drop_exact") is True
        assert found.pop("drop_path") == 0.3
        assert whole.pop("drop_path") == 0
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name


@pytest.mark.parametrize("kind", ["paper", "small"])
@pytest.mark.parametrize("row", ROWS)
def test_every_row_builds(kind, row):
    recipe = adapted(kind, row, 32)
    assert recipe.config.ladder == row  # it stays known which row this is
    small = {k: v for k, v in recipe.encoder.items() if k not in ("patch", "hidden")}
    encoder = backbones.build(name="vit-n/8", image_size=32, **small)
    config = dataclasses.replace(recipe.config, prototypes=8, head_hidden=8, head_bottleneck=4)
    method = dinov2.Method(encoder, config, Context(image_size=32))
    assert (method.patch_head is not None) == (row >= 11)
    assert config.centring == ("mean" if row < 10 else "sinkhorn")


@pytest.mark.parametrize("name", ["swin-t", "cait-xxs24"])
def test_rows_are_refused_where_the_backbone_has_nothing_to_switch(name):
    recipe = dinov2.small(32, name)
    recipe = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, ladder=0))
    with pytest.raises(ValueError, match=r"hidden.*choose a plain ViT"):
        dinov2.adapted(recipe, backbones.options(name))


def test_without_a_row_a_recipe_stays_as_it_is():
    recipe = dinov2.paper(224, "vit-l/16")
    assert dinov2.adapted(recipe, MODEL) is recipe


@pytest.mark.parametrize("row", [-1, 12, 100])
def test_rows_that_do_not_exist_are_refused(row):
    with pytest.raises(ValueError, match="0 to 11"):
        dinov2.Config(ladder=row)


def test_the_published_runs():
    """dinov2/configs/train/vitl14.yaml and vitl16_short.yaml of facebookresearch/dinov2 b8931f7."""
    long = dinov2.paper(224, "dinov2-l/14")
    short = dataclasses.replace(dinov2.paper(224, "vit-l/16"), config=dinov2.Config(short=True))
    short = dinov2.adapted(short, MODEL)
    assert (long.batch, short.batch) == (3072, 2048)
    assert long.lr == pytest.approx(2e-4 * math.sqrt(3072 / 1024))
    assert short.lr == pytest.approx(4e-3 * math.sqrt(2048 / 1024))
    assert (long.warmup_epochs, short.warmup_epochs) == (80, 10)
    assert (long.weight_decay_end, short.weight_decay_end) == (0.2, 0.4)
    assert (long.drop_path, short.drop_path) == (0.4, 0.3)
    assert (long.config.head_bottleneck, short.config.head_bottleneck) == (384, 256)
    assert (long.encoder["hidden"], "mlp" in short.encoder) == (2736, False)
    assert (long.config.momentum, short.config.momentum) == (0.994, 0.992)
    with pytest.raises(ValueError, match="choose one"):
        dinov2.Config(short=True, ladder=3)


def test_what_compares_images_wants_two():
    alone = dinov2.Config(koleo=0.0, centring="mean")
    assert dinov2.needs(alone).batch == 1
    assert dinov2.needs(dinov2.Config()).batch == 2
    wanted = [dinov2.needs(dinov2.Config(ladder=row)).batch for row in ROWS]
    assert wanted == [1] * 4 + [2] * 8  # from KoLeo on


# ---------------------------------------------------------------- the method
def method(**options):
    torch.manual_seed(0)
    encoder = ViT("toy", depth=2, dim=8, heads=2, hidden=16, patch=4, image_size=16)
    for p in encoder.parameters():
        p.data += 0.3 * torch.randn_like(p)
    config = dinov2.Config(prototypes=7, head_hidden=8, head_bottleneck=4, **options)
    return dinov2.Method(encoder, config, Context(image_size=16))


def batch(n=4):
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, 16), (1, 16), (2, 8))
    views = tuple(torch.randn(n, v, 3, s, s, generator=generator) for v, s in shapes)
    return Batch(views, Key(0, np.zeros(n), np.arange(n)))


def test_the_parts_of_the_loss_add_up():
    net, data = method(koleo=0.3, patch_weight=0.5, mask_probability=1.0), batch()
    output = net(data, Clock(0, 10, 0.0))
    metrics = output.metrics
    expected = metrics["image_loss"] + 0.5 * metrics["patch_loss"] + 0.3 * 2 * metrics["koleo"]
    torch.testing.assert_close(output.loss.detach(), expected)
    assert metrics["patch_loss"] > 0
    off = method(koleo=0.0, patch_weight=0.5, mask_probability=1.0)(data, Clock(0, 10, 0.0))
    torch.testing.assert_close(output.loss - off.loss, 0.6 * metrics["koleo"], rtol=1e-4, atol=1e-5)


def test_koleo_sees_each_view_apart():
    """Two views of an image are meant to be neighbours: only other images are pushed away."""
    net, data = method(mask_probability=0.0), batch()
    output = net(data, Clock(0, 10, 0.0))
    apart = [koleo(net.encoder(view[:, 0]).pooled) for view in data.views[:2]]
    torch.testing.assert_close(output.metrics["koleo"], (sum(apart) / 2).detach(), rtol=1e-5, atol=1e-6)


def test_centres_of_micro_batches_are_means_over_hidden_patches():
    """However they are spread over micro-batches; without a hidden patch the patches' centre stays."""
    net = method(centring="mean", centre_momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    images, patches = torch.randn(6, 7, generator=generator), torch.randn(9, 7, generator=generator)
    carries = [
        (images[:3].mean(0), patches[:2].sum(0), 2.0),
        (images[3:].mean(0), patches[2:].sum(0), 7.0),
    ]
    net.after_step(Clock(1, 10, 0.0), carries)
    torch.testing.assert_close(net.centre, 0.1 * images.mean(0))
    torch.testing.assert_close(net.patch_centre, 0.1 * patches.mean(0))
    before = net.patch_centre.clone()
    net.after_step(Clock(1, 10, 0.0), [(images.mean(0), torch.zeros(7), 0.0)])
    assert torch.equal(net.patch_centre, before)
    torch.testing.assert_close(net.centre, 0.19 * images.mean(0))


@pytest.mark.parametrize("centring", ["mean", "sinkhorn"])
def test_what_is_carried(centring):
    output = method(centring=centring)(batch(), Clock(0, 10, 0.0))
    assert (output.carry is None) == (centring == "sinkhorn")


def test_rates_are_the_published_codes():
    """facebookresearch/dinov2 b8931f7, get_params_groups_with_decay: the mask token is of the first layer."""
    net = method(layer_decay=0.9, patch_embed_lr=0.2)
    names = {id(p): name for name, p in net.named_parameters()}
    found = {names[id(p)]: group.lr_scale for group in net.groups() for p in group.params}
    expected = {
        "mask_token": 0.9**3,
        "encoder.cls_token": 0.9**3,
        "encoder.pos_embed": 0.9**3,
        "encoder.patch_embed.proj.weight": 0.2 * 0.9**3,
        "encoder.blocks.0.mlp.fc1.weight": 0.9**2,
        "encoder.blocks.1.norm2.bias": 0.9,
        "encoder.norm.weight": 1.0,
        "head.mlp.0.weight": 1.0,
        "patch_head.last.weight": 1.0,
    }
    for name, rate in expected.items():
        assert found[name] == pytest.approx(rate), name
