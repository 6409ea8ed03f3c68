"""LoRA: starts from the frozen network, adapts the layers that it names, and folds into their weights."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from waves import wave

from omma import backbones
from omma.backbones import adapters
from omma.backbones.adapters import lora
from omma.ops.linear import Linear
from omma.pretraining import requirements
from omma.pretraining.request import Request

SMALL = {"image_size": 16, "depth": 2, "dim": 24, "heads": 2, "hidden": 48}
FAMILIES = {
    "vit": {"name": "vit-n/4", **SMALL},
    "swiglu": {"name": "dinov2-s/4", **SMALL, "mlp": "swiglu", "registers": 2, "layer_scale": 0.5},
    "beit": {"name": "beit-ti/4", **SMALL},
    "eva02": {"name": "eva02-ti/4", **SMALL, "mlp": "split_swiglu", "sub_norm": True, "fused": False},
    "cait": {
        "name": "cait-xxs24",
        "image_size": 16,
        "patch": 4,
        "depth": 1,
        "dim": 24,
        "heads": 2,
        "layer_scale": 0.5,
    },
    "swin": {"name": "swin-t", "image_size": 32, "dim": 24, "depths": (1, 2), "heads": (1, 2), "window": 4},
    "vitc": {"name": "vitc-15mf", "image_size": 16},
    "timm's vit": {
        "name": "timm:vit_tiny_patch16_224",
        "image_size": 32,
        "arguments": '{"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 8}',
    },
    "timm's beit": {
        "name": "timm:beit_base_patch16_224",
        "image_size": 32,
        "arguments": '{"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 8}',
    },
    "timm's cnn": {"name": "timm:test_efficientnet", "image_size": 32},
    "torchvision's cnn": {"name": "torchvision:resnet18", "image_size": 32},
}


def network(spec: dict) -> backbones.Backbone:
    torch.manual_seed(0)
    return backbones.build(**spec).eval()


def adapted(spec: dict, **options: object) -> backbones.Backbone:
    """A network whose LoRA has been trained."""
    model = network(spec)
    adapters.insert(model, "lora", options)
    torch.manual_seed(1)
    for layer in lora.layers(model).values():
        torch.nn.init.normal_(layer.lora_B.weight, std=0.2)
    return model


@pytest.fixture(params=list(FAMILIES), ids=list(FAMILIES))
def spec(request):
    return FAMILIES[request.param]


def images(spec: dict, n: int = 2) -> torch.Tensor:
    return torch.randn(
        n, 3, spec["image_size"], spec["image_size"], generator=torch.Generator().manual_seed(2)
    )


def loss(pooled: torch.Tensor) -> torch.Tensor:
    """A product with fixed weights: the sum of squares is constant after a norm."""
    return (pooled.float() * torch.linspace(-1, 1, pooled.numel()).view_as(pooled)).sum()


def test_starts_from_the_frozen_network_and_merges(spec):
    base, model, x = network(spec), network(spec), images(spec)
    adapters.insert(model, "lora")
    assert torch.equal(model(x).pooled, base(x).pooled)
    model = adapted(spec)
    merged = adapters.merged(model)
    assert merged.spec() == base.spec()
    assert merged.state_dict().keys() == base.state_dict().keys()
    out = model(x).pooled
    assert not torch.allclose(out, base(x).pooled, atol=1e-3)
    torch.testing.assert_close(merged(x).pooled, out, atol=1e-5, rtol=1e-5)
    assert [type(m) for m in merged.modules()] == [type(m) for m in base.modules()]


def test_every_adapted_layer_learns_and_nothing_else(spec):
    model = adapted(spec).train()
    loss(model(images(spec)).pooled).backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and p.grad.any()) == (".lora_" in name), name
        assert p.requires_grad == (".lora_" in name)


def test_all_linear_layers_of_a_block_have_16_r_d_parameters():
    spec = {"name": "vit-n/4", **SMALL, "hidden": 96}
    model = network(spec)
    adapters.insert(model, "lora", {"rank": 3})
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 16 * 3 * 24
    model = network(spec)
    adapters.insert(model, "lora", {"rank": 4, "targets": "qkv"})
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 4 * 4 * 24


def test_the_target_proj_leaves_the_patch_embedding_alone():
    model = network(FAMILIES["vit"])
    adapters.insert(model, "lora", {"targets": ["proj"]})
    assert sorted(lora.layers(model)) == ["blocks.0.attn.proj", "blocks.1.attn.proj"]


def test_depthwise_convolutions_are_left_alone():
    model = network(FAMILIES["timm's cnn"])
    adapters.insert(model, "lora")
    kinds = {name.rpartition(".")[2] for name in lora.layers(model)}
    assert "conv_pw" in kinds
    assert "conv_dw" not in kinds
    assert "conv_stem" not in lora.layers(model)


def test_in_bf16_every_path_computes_what_fp32_does():
    """Packed sequences and recomputation too; the kernels for whole branches cannot be bypassed."""
    spec = {"name": "vit-n/4", "image_size": 16, "depth": 2, "dim": 64, "heads": 2, "hidden": 128}
    model, x = adapted(spec).train(), images(spec, 16)
    want = model(x).pooled
    loss(want).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for recompute in (False, True):
        model.zero_grad()
        model.recompute = recompute
        weights = {n: p.bfloat16() for n, p in model.named_parameters()}
        whole, half = functional_call(model, weights, (x,)), functional_call(model, weights, (x[:8],))
        torch.testing.assert_close(whole.pooled.float(), want, atol=0.06, rtol=0.06)
        torch.testing.assert_close(half.pooled.float(), want[:8], atol=0.06, rtol=0.06)
        loss(whole.pooled).backward()
        for name, p in model.named_parameters():
            assert (p.grad is not None) == (name in grads)
            if p.grad is not None:
                assert torch.nn.functional.cosine_similarity(p.grad.ravel(), grads[name].ravel(), 0) > 0.995


def test_packed_sequences_are_encoded_as_alone():
    model = adapted(FAMILIES["vit"])
    batches = [
        (model.tokenize(x), model.grid(*x.shape[2:]))
        for x in (torch.randn(2, 3, 16, 16), torch.randn(3, 3, 8, 8))
    ]
    for one, (tokens, grid) in zip(model.encode_many(batches), batches, strict=True):
        torch.testing.assert_close(one.pooled, model.encode(tokens, grid).pooled, atol=1e-5, rtol=1e-5)


def test_dropout_follows_the_training_mode_and_the_frozen_part_does_not():
    model, x = adapted(FAMILIES["vit"], dropout=0.5), images(FAMILIES["vit"])
    assert torch.equal(model(x).pooled, model(x).pooled)
    model.train()
    assert not torch.equal(model(x).pooled, model(x).pooled)


def test_merging_twice_changes_nothing():
    once = adapters.merged(adapted(FAMILIES["vit"]))
    twice = adapters.merged(once).state_dict()
    assert all(torch.equal(x, twice[name]) for name, x in once.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"--adapt\.rank 0: must be whole and at least 1"),
        ({"alpha": -1.0}, r"--adapt\.alpha -1.0: must be above 0"),
        ({"dropout": 1.0}, r"--adapt\.dropout 1.0: must be in \[0, 1\)"),
        (
            {"targets": "qkv,queries"},
            r"--adapt\.targets queries: vit-n/4 has no such layer .* fc1, fc2, proj, qkv",
        ),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adapters.insert(network(FAMILIES["vit"]), "lora", options)


def test_a_layer_whose_weight_is_read_by_its_parent_is_refused():
    class Reader(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"fc1": torch.nn.Linear(3, 4)})])

        def forward(self, x):
            return torch.nn.functional.linear(x.mean((2, 3)), self.blocks[0]["fc1"].weight)

    model = backbones.wrap(Reader(), image_size=8, name="reader")
    with pytest.raises(ValueError, match=r"reader never calls blocks.0.fc1 as a layer"):
        adapters.insert(model, "lora")


@pytest.mark.slow
def test_a_compiled_block_computes_the_same():
    model, x = adapted(FAMILIES["vit"]), torch.randn(2, 16, 24)
    block = model.blocks[0]
    torch.testing.assert_close(
        torch.compile(block, backend="aot_eager", fullgraph=True)(x), block(x), atol=1e-5, rtol=1e-5
    )


def _alone(layer: nn.Module, name: str) -> nn.Module:
    """A trained LoRA of one layer, with rank 2 and alpha 3; its values are waves."""

    class Network(backbones.Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.name, self.channels, self.image_size = "one layer", 2, 4
            self.blocks = nn.ModuleList([nn.ModuleDict({name: layer})])

        def repeated(self) -> list[nn.Module]:
            return list(self.blocks)

    lora.insert(Network().requires_grad_(False), lora.Config(rank=2, alpha=3.0, targets=(name,)))
    with torch.no_grad():
        layer.lora_A.weight.copy_(wave(*layer.lora_A.weight.shape, phase=2.0))
        layer.lora_B.weight.copy_(wave(*layer.lora_B.weight.shape, phase=3.0))
    return layer


def test_a_linear_layer_computes_what_pefts_does():
    """Output, gradients and update of peft 0.21.2 for the same values, in fp64."""
    layer = Linear(4, 3).double()
    layer.weight.data, layer.bias.data = wave(3, 4), wave(3, phase=1.0)
    layer = _alone(layer, "fc1")
    y = layer(wave(2, 4, phase=4.0))
    (y * wave(2, 3, phase=5.0)).sum().backward()
    for own, theirs in (
        (y, [-0.483476097, 0.840849601, 2.35557287, 0.395336191, -1.569021613, 0.311923923]),
        (
            layer.lora_A.weight.grad,
            [0.952705557, 0.88008879, -0.546242221, 0.27538142,
             -0.282720115, -2.687481509, 1.470036161, 2.098661597],
        ),
        (
            layer.lora_B.weight.grad,
            [1.265586798, 0.398463625, 1.093320282, -1.015916656, -2.629523001, 1.361093383],
        ),
        (
            layer.update(),
            [1.348165438, -0.967302488, -0.954935802, 0.316112738, -1.745637779, 0.986938151,
             1.361889318, -0.665433013, -0.960774058, -0.131918044, 1.068411388, -1.017394287],
        ),
    ):  # fmt: skip
        torch.testing.assert_close(own.flatten(), torch.tensor(theirs, dtype=own.dtype), atol=1e-8, rtol=0)
    assert layer.weight.grad is None


def test_a_convolution_computes_what_pefts_does():
    """Output of peft 0.21.2 for the same values, in fp64."""
    layer = nn.Conv2d(2, 3, 3, 2, 1, bias=False).double()
    layer.weight.data = wave(3, 2, 3, 3)
    y = _alone(layer, "conv")(wave(1, 2, 4, 4, phase=4.0))
    theirs = [
        1.040395979, -0.959776752, -0.594534349, 2.924564231, 0.145276785, 0.753449295,
        2.124506596, -0.904608537, 1.477065275, 2.42461355, -5.457570961, 3.303677124,
    ]  # fmt: skip
    torch.testing.assert_close(y.flatten(), torch.tensor(theirs, dtype=y.dtype), atol=1e-8, rtol=0)


def test_targets_can_be_given_on_the_command_line():
    """As text; in Python as a sequence, too."""
    request = Request("x", init="y", adapt="lora", adapt_options={"targets": "qkv,proj", "rank": "4"})
    kind, options = requirements.adapter(request)
    assert (kind, options["targets"], options["rank"]) == ("lora", "qkv,proj", 4)
    assert lora.Config(targets=["qkv", "proj"]).targets == "qkv,proj"
