"""Bottlenecks beside the MLPs."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from omma import backbones
from omma.backbones import adapters

SMALL = {"image_size": 16, "depth": 2, "dim": 64, "heads": 2, "hidden": 128}
FAMILIES = {
    "vit": {"name": "vit-n/4", **SMALL},
    "dinov2": {"name": "dinov2-s/4", **SMALL},
    "beit": {"name": "beit-ti/4", **SMALL},
    "cait": {"name": "cait-xxs24", "image_size": 16, "patch": 4, "depth": 1, "dim": 24, "heads": 2},
    "swin": {"name": "swin-t", "image_size": 32, "dim": 24, "depths": (1, 2), "heads": (1, 2), "window": 4},
}


def network(spec: dict, **options: object) -> backbones.Backbone:
    torch.manual_seed(0)
    model = backbones.build(**spec).eval()
    if options:
        adapters.insert(model, "adapter", options)
    return model


def images(side: int, n: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_starts_from_the_frozen_network_and_alone_is_trained(spec):
    model, x = network(spec, width=5), images(spec["image_size"], 2)
    # the sum of branches may be another kernel, which rounds otherwise
    torch.testing.assert_close(model(x).pooled, network(spec)(x).pooled, rtol=0, atol=1e-6)
    model.train()(x).pooled.sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {n for n, _ in model.named_parameters() if ".mlp.beside." in n}
    assert len(trained) == 4 * len(model.repeated())


def test_it_computes_the_papers_sum_beside_a_scaled_branch():
    model = network(FAMILIES["dinov2"], width=5, scale=0.3)
    block, x = model.blocks[0], torch.randn(2, 7, 64)
    bottleneck = block.mlp.beside
    for p in bottleneck.parameters():
        torch.nn.init.normal_(p)
    middle = x + block.ls1(block.attn(block.norm1(x)))
    normed = block.norm2(middle)
    hidden = F.relu(normed @ bottleneck.down.weight.T + bottleneck.down.bias)
    beside = 0.3 * (hidden @ bottleneck.up.weight.T + bottleneck.up.bias)
    torch.testing.assert_close(block(x), middle + block.ls2(block.mlp(normed)) + beside, atol=1e-5, rtol=1e-5)


def test_in_bf16_it_computes_what_fp32_does():
    model, x = network(FAMILIES["vit"], width=32), images(16)
    for block in model.blocks:
        torch.nn.init.normal_(block.mlp.beside.up.weight)
    weights = {n: p.bfloat16() for n, p in model.named_parameters()}
    out = functional_call(model, weights, (x,)).pooled.float()
    torch.testing.assert_close(out, model(x).pooled, atol=0.06, rtol=0.06)


def test_a_network_without_such_blocks_is_refused():
    with pytest.raises(ValueError, match=r"--adapt adapter needs a transformer of omma's"):
        adapters.insert(backbones.build(name="dalle/8", image_size=16, hidden=8, depth=1), "adapter")


@pytest.mark.parametrize(("key", "value"), [("width", 0), ("scale", 0.0), ("dropout", 1.0)])
def test_impossible_options_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"--adapt\.{key} {value}: must be"):
        adapters.config("adapter", {key: value})
