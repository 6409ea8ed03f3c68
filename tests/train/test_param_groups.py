"""Which parameters decay, and how fast each layer learns."""

import pytest
import torch
from torch import nn

from omma import backbones
from omma.backbones.vit import ViT
from omma.train import param_groups


def toy(**options):
    shape = {"depth": 3, "dim": 8, "heads": 2, "hidden": 16, "patch": 4, "image_size": 8}
    return ViT("toy", **(shape | options))


def rates(encoder, decay, embedding=1.0):
    """Name of each parameter and its rate."""
    names = {id(p): name for name, p in encoder.named_parameters()}
    found = param_groups.layerwise(encoder, "encoder", decay, embedding)
    pairs = [(names[id(p)], group.lr_scale) for group in found for p in group.params]
    assert len(pairs) == len(dict(pairs))  # each once
    return dict(pairs)


def test_matrices_decay_and_the_rest_does_not():
    encoder = toy(registers=2, layer_scale=1e-5)
    decayed = {id(p) for g in param_groups.standard(encoder, "encoder") if g.decay for p in g.params}
    for name, p in encoder.named_parameters():
        plain = name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight"))
        assert (id(p) in decayed) == plain, name


def test_frozen_and_spared_parameters():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    module[0].requires_grad_(False)
    module[1].undecayed = ("weight",)
    (group,) = param_groups.standard(module, "head", lr_scale=0.5, frozen_until=2.0)
    assert not group.decay
    assert (group.label, group.lr_scale, group.frozen_until) == ("head, no decay", 0.5, 2.0)
    assert {id(p) for p in group.params} == {id(p) for p in module[1].parameters()}


def test_rates_of_layers():
    """decay^(L + 1 - layer): 0 the embedding, 1 to L the blocks, L + 1 what follows [Bao 2021, appendix].

    The published rule (facebookresearch/dinov2 b8931f7, get_vit_lr_decay_rate) by a parameter's name.
    """
    found = rates(toy(registers=2), 0.9, 0.2)
    encoder = toy(registers=2)
    assert set(found) == {name for name, _ in encoder.named_parameters()}
    for name, rate in found.items():
        if name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = 4 if name.startswith("norm.") else 0
        assert rate == pytest.approx(0.9 ** (4 - layer) * (0.2 if "patch_embed" in name else 1.0)), name


def test_without_decay_it_is_the_standard():
    encoder = toy()
    plain, found = param_groups.standard(encoder, "encoder"), param_groups.layerwise(encoder, "encoder", 1.0)
    assert [g.label for g in found] == [g.label for g in plain]
    assert all(g.lr_scale == 1 for g in found)


@pytest.mark.parametrize("name", ["vit-n/8", "beit-ti/16", "dinov3-s/16", "cait-xxs24", "swin-t"])
def test_every_family_keeps_its_weight_decay(name):
    """Layer by layer each parameter decays if and only if it does without layers."""
    encoder = backbones.build(name=name, image_size=32)
    whole = {id(p): g.decay for g in param_groups.standard(encoder, "encoder") for p in g.params}
    if len(encoder.by_depth()) < 2:
        with pytest.raises(ValueError, match="layer-decay 1"):
            param_groups.layerwise(encoder, "encoder", 0.8)
        return
    parts = {id(p): g.decay for g in param_groups.layerwise(encoder, "encoder", 0.8, 0.5) for p in g.params}
    assert parts == whole
    found = [rate for _, rate in sorted(rates(encoder, 0.8).items(), key=lambda pair: pair[1])]
    assert found[-1] <= 1
    assert found[0] == pytest.approx(0.8 ** (len(encoder.by_depth()) - 1))


def test_unknown_layers_are_refused():
    class Odd(nn.Module):
        name = "odd"

        def by_depth(self):
            return [[nn.Parameter(torch.zeros(1))]]

    with pytest.raises(ValueError, match="odd"):
        param_groups.layerwise(Odd(), "encoder", 0.9)


@pytest.mark.parametrize(
    ("decayed", "extra"),
    [
        ((), set()),
        (("token",), {"cls_token", "mask_token"}),
        (("mask_token",), {"mask_token"}),
        (("mask_token", "table"), {"mask_token", "relative_position_bias_table"}),
        (("position",), {"pos_embed"}),
    ],
)
def test_kinds_that_decay_beside_matrices(decayed, extra):
    """A mask token is a token, and its name stands for it alone: BEiT's code spares the class token."""
    module = nn.Module()
    module.encoder = backbones.build(
        name="beit/4", image_size=8, depth=1, dim=8, heads=2, hidden=16, positions="learned"
    )
    module.mask_token = nn.Parameter(torch.zeros(1, 1, 8))
    own = param_groups.standard(module, "all")
    plain = {id(p) for group in own if group.decay for p in group.params}
    found = param_groups.with_decay(own, module, decayed)
    names = {id(p): name.rpartition(".")[2] for name, p in module.named_parameters()}
    assert sorted(names) == sorted(id(p) for group in found for p in group.params)  # each once
    more = {names[id(p)] for group in found if group.decay for p in group.params if id(p) not in plain}
    assert more == extra
