"""Initial weights: every distribution against its closed form."""

import math

import pytest
import torch

from omma import backbones

DIM, PATCH, DEPTH = 48, 8, 2
FAN = 3 * PATCH**2  # values of a patch
SPEC = {"image_size": 64, "depth": DEPTH, "dim": DIM, "heads": 4, "hidden": 4 * DIM}
# of a normal distribution of deviation 1 cut at +-1
CUT = math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(0.5)))


def uniform(bound):
    return bound / math.sqrt(3)


def xavier(fan_in, fan_out):
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


# kernel and bias of the patch embedding, class token, registers, positions, qkv, proj, fc1, bias of fc1, fc2
NORMAL = {"token": 0.02, "register": 0.02, "positions": 0.02}
DEFAULT = {"patch": uniform(FAN**-0.5), "patch_bias": uniform(FAN**-0.5)}
LINEAR = {"qkv": 0.02, "proj": 0.02, "fc1": 0.02, "fc2": 0.02, "fc1_bias": 0.0}
XAVIER = {
    "patch": xavier(FAN, DIM),
    "qkv": xavier(DIM, 3 * DIM),
    "proj": xavier(DIM, DIM),
    "fc1": xavier(DIM, 4 * DIM),
    "fc2": xavier(DIM, 4 * DIM),
    "fc1_bias": 0.0,
}
KINDS = ("token", "register", "positions", "patch", "qkv", "proj", "fc1", "fc2")
FORMS = {
    "vit": NORMAL | LINEAR | {"patch": xavier(FAN, DIM), "patch_bias": 0.0},
    "deit": NORMAL | LINEAR | DEFAULT,
    "dino": NORMAL | LINEAR | DEFAULT,
    "dinov2": NORMAL | LINEAR | DEFAULT | {"token": 1e-6, "register": 1e-6},
    "moco": NORMAL | XAVIER | {"patch_bias": 0.0, "token": 1e-6, "qkv": xavier(DIM, DIM)},
    "mae": NORMAL | XAVIER | {"patch_bias": DEFAULT["patch_bias"]},
    "beit": dict.fromkeys(KINDS, 0.02 * CUT) | {"patch_bias": 0.0, "fc1_bias": 0.0},
    "simmim": dict.fromkeys(KINDS, 0.02 * CUT) | {"patch_bias": 0.0, "fc1_bias": 0.0},
    "eva": dict.fromkeys(KINDS, 0.015 * CUT) | {"patch_bias": 0.0, "fc1_bias": 0.0},
    "eva02": XAVIER | DEFAULT | dict.fromkeys(("token", "register", "positions"), 0.02 * CUT)
    | {"patch": xavier(FAN, DIM)},
    "clip": DEFAULT | dict.fromkeys(("token", "register", "positions"), DIM**-0.5)
    | {
        "qkv": xavier(DIM, 3 * DIM),
        "proj": uniform(DIM**-0.5),
        "fc1": uniform(DIM**-0.5),
        "fc1_bias": uniform(DIM**-0.5),
        "fc2": uniform((4 * DIM) ** -0.5),
    },
}  # fmt: skip
RESCALED = ("beit", "simmim", "eva")


def values(network):
    """Values of each kind, those of all layers together."""
    layers = [(b.attn.qkv, b.attn.proj, b.mlp.fc1, b.mlp.fc2) for b in network.blocks]
    qkv, proj, fc1, fc2 = ([layer.weight for layer in column] for column in zip(*layers, strict=True))
    kinds = {
        "token": [network.cls_token],
        "register": [network.reg_token],
        "positions": [network.pos_embed],
        "patch": [network.patch_embed.proj.weight],
        "patch_bias": [network.patch_embed.proj.bias],
        "qkv": qkv,
        "proj": proj,
        "fc1": fc1,
        "fc2": fc2,
        "fc1_bias": [b.mlp.fc1.bias for b in network.blocks],
    }
    return {kind: [x.detach().double().flatten() for x in tensors] for kind, tensors in kinds.items()}


def assert_deviation(x, expected, name):
    """Mean 0 and the expected deviation, within 4.5 standard errors, of any of the distributions here."""
    if expected == 0:
        assert not x.any(), name
        return
    assert abs(x.mean()) < 4.5 * expected / len(x) ** 0.5, name
    assert abs(x.std() / expected - 1) < 4.5 / (2 * len(x)) ** 0.5, name


@pytest.mark.parametrize("init", sorted(FORMS))
def test_deviations(init):
    torch.manual_seed(0)
    network = backbones.build(name="vit/8", **SPEC, registers=2, init=init)
    for kind, tensors in values(network).items():
        for layer, x in enumerate(tensors, start=1):
            factor = (2 * layer) ** -0.5 if init in RESCALED and kind in ("proj", "fc2") else 1
            assert_deviation(x, FORMS[init][kind] * factor, f"{kind} of layer {layer}")
    assert not any(block.attn.qkv.bias.any() or block.attn.proj.bias.any() for block in network.blocks)


@pytest.mark.parametrize("init", ["beit", "eva", "simmim"])
def test_nothing_lies_beyond_one_deviation(init):
    network = backbones.build(name="vit/8", **SPEC, registers=2, init=init)
    bound = 0.015 if init == "eva" else 0.02
    assert max(float(p.detach().abs().max()) for p in network.parameters() if p.ndim > 1) <= bound


def test_of_beit():
    """Its own values and the default: the tables are zeros, and branches are rescaled in both."""
    torch.manual_seed(0)
    for init, base in (("vit", 0.02), ("beit", 0.02 * CUT), ("dino", 0.02)):
        network = backbones.build(name="beit/8", **SPEC, init=init)
        for i, block in enumerate(network.blocks, start=1):
            assert not block.attn.relative_position_bias_table.any()
            factor = 1 if init == "dino" else (2 * i) ** -0.5
            assert_deviation(block.mlp.fc2.weight.double().flatten(), base * factor, f"{init}, layer {i}")


def test_of_eva02():
    """sub-LN's factor sqrt(log(2 depth)), for values and the MLP, not for queries."""
    torch.manual_seed(0)
    options = {"mlp": "split_swiglu", "sub_norm": True, "fused": False, "rope": "none"}
    network = backbones.build(name="eva02/8", **SPEC, **options, init="eva02")
    factor = math.log(2 * DEPTH) ** 0.5
    for block in network.blocks:
        square = math.sqrt(1 / DIM)
        wide = math.sqrt(2 / (DIM + 4 * DIM))
        assert_deviation(block.attn.q_proj.weight.double().flatten(), square, "q")
        assert_deviation(block.attn.v_proj.weight.double().flatten(), square * factor, "v")
        assert_deviation(block.attn.proj.weight.double().flatten(), square * factor, "proj")
        assert_deviation(block.mlp.fc1_x.weight.double().flatten(), wide * factor, "fc1")
        assert_deviation(block.mlp.fc2.weight.double().flatten(), wide * factor, "fc2")


@pytest.mark.parametrize("init", ["simmim", "vit"])
def test_of_swin(init):
    """SimMIM's Swin is drawn as Swin's paper's, not as SimMIM's ViT."""
    torch.manual_seed(0)
    network = backbones.build(name="swin", image_size=64, dim=48, depths=(2, 2), heads=(2, 4), init=init)
    kernel = network.patch_embed.proj.weight.double().flatten()
    assert_deviation(kernel, uniform(48**-0.5) if init == "simmim" else xavier(48, 48), "kernel")
    assert network.patch_embed.proj.bias.any() == (init == "simmim")
    for block in network.repeated():
        for x in (block.attn.relative_position_bias_table, block.attn.proj.weight, block.mlp.fc2.weight):
            assert_deviation(x.double().flatten(), 0.02, "layer")


def test_fixed_positions_stay():
    a, b = (backbones.build(name="vit/8", **SPEC, positions="sincos", init=init) for init in ("vit", "moco"))
    assert torch.equal(a.pos_embed, b.pos_embed)


@pytest.mark.parametrize("name", ["vit/8", "beit/8", "swin-t"])
def test_unknown(name):
    spec = {"image_size": 64} if name == "swin-t" else SPEC
    with pytest.raises(ValueError, match=r"init='dyno'.*dinov2"):
        backbones.build(name=name, **spec, init="dyno")
