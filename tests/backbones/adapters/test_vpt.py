"""Prompts: they change what the network computes, and are no part of what it returns."""

import pytest
import torch
from waves import wave

from omma import backbones
from omma.backbones import adapters
from omma.backbones.adapters.vpt import Prompts

SMALL = {"image_size": 16, "depth": 2, "dim": 24, "heads": 2, "hidden": 48}
FAMILIES = {
    "vit": {"name": "vit-n/4", **SMALL},
    "vit, rope": {"name": "vit-n/4", **SMALL, "positions": "rope", "registers": 2},
    "vit, mean": {"name": "vit-n/4", **SMALL, "pool": "mean", "class_token": False},
    "vit, clip's": {"name": "vit-n/4", **SMALL, "norm_pre": True},
    "beit": {"name": "beit-ti/4", **SMALL, "layer_scale": 0.5},
    "beit, shared": {"name": "beit-ti/4", **SMALL, "bias": "shared"},
    "dinov3": {"name": "dinov3-s/4", **SMALL, "layer_scale": 0.5},
    "vitc": {"name": "vitc-15mf", "image_size": 16},
}


def network(spec: dict, **options: object) -> backbones.Backbone:
    torch.manual_seed(0)
    model = backbones.build(**spec).eval()
    for name, p in model.named_parameters():
        if "relative" in name:
            torch.nn.init.normal_(p)
    if options:
        adapters.insert(model, "vpt", options)
    return model


@pytest.fixture(params=list(FAMILIES), ids=list(FAMILIES))
def spec(request):
    return FAMILIES[request.param]


def images(n: int = 2, side: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_prompts_without_effect_leave_the_features_as_they_are(spec, deep, monkeypatch):
    """Hidden from attention, with positions and biases of all other tokens in their places."""
    base, model = network(spec), network(spec, prompts=3, deep=deep)
    want, where = base(images()), model.where

    def hiding(grid, keep):
        place = where(grid, keep)
        hidden = torch.zeros(1, 1, 1, model.front + grid[0] * grid[1])
        hidden[..., model.prefix : model.front] = -torch.inf
        bias = hidden if place.bias is None else place.bias + hidden
        return place._replace(bias=bias.expand(-1, -1, hidden.shape[3], -1))

    monkeypatch.setattr(model, "where", hiding)
    if spec.get("name", "").startswith("beit") and "bias" not in spec:  # a bias in each layer
        for block in model.blocks:
            own = block.attn._bias
            monkeypatch.setattr(block.attn, "_bias", lambda w, own=own: own(w) + w.bias)
    features = model(images())
    for name in ("pooled", "patches", "prefix"):
        one, other = getattr(features, name), getattr(want, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert features.grid == want.grid


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_prompts_change_the_features_and_alone_are_trained(spec, deep):
    model = network(spec, prompts=3, deep=deep)
    assert not torch.allclose(model(images()).pooled, network(spec)(images()).pooled, atol=1e-4)
    trained = {n: p for n, p in model.train().named_parameters() if p.requires_grad}
    assert {n: tuple(p.shape) for n, p in trained.items()} == {
        "prompts.tokens": (len(model.blocks) if deep else 1, 3, model.dim)
    }
    (model(images()).pooled * torch.arange(model.dim)).sum().backward()
    assert trained["prompts.tokens"].grad.flatten(1).any(1).all()


@pytest.mark.parametrize("name", ["vit", "vit, rope", "beit"])
def test_packed_and_dropped_tokens_see_the_same_prompts(name):
    model = network(FAMILIES[name], prompts=3)
    batches = [(model.tokenize(x), model.grid(*x.shape[2:])) for x in (images(), images(3, 8))]
    for one, (tokens, grid) in zip(model.encode_many(batches), batches, strict=True):
        torch.testing.assert_close(one.pooled, model.encode(tokens, grid).pooled, atol=1e-5, rtol=1e-5)
    tokens, grid = batches[0]
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    shuffled = tokens.gather(1, order[..., None].expand(-1, -1, model.dim))
    torch.testing.assert_close(
        model.encode(shuffled, grid, order).pooled, model.encode(tokens, grid).pooled, atol=1e-5, rtol=1e-5
    )


def test_attention_pictures_leave_prompts_out():
    model = network(FAMILIES["vit"], prompts=3)
    (maps,) = model.attention(images())
    assert maps.shape == (2, 2, 17, 17)
    assert (maps.sum(-1) < 1).all()
    assert model.pooled_attention(images()).shape == (2, 2, 16)


def test_initial_values_are_uniform_within_the_papers_bound():
    tokens = network(FAMILIES["vit"], prompts=200).prompts.tokens
    bound = (6 / (3 * 4**2 + 24)) ** 0.5
    assert 0.99 * bound < tokens.abs().max() <= bound
    assert abs(tokens.std() / (bound / 3**0.5) - 1) < 0.02


def test_dropout_is_for_training():
    model = network(FAMILIES["vit"], dropout=0.5)
    assert torch.equal(model(images()).pooled, model(images()).pooled)
    model.train()
    assert not torch.equal(model(images()).pooled, model(images()).pooled)


def test_a_spec_rebuilds_prompts_and_merging_keeps_them():
    model = network(FAMILIES["vit"], prompts=3, deep=False)
    kept = adapters.merged(model)
    assert kept.spec() == model.spec()
    assert isinstance(backbones.build(**kept.spec()).prompts, Prompts)
    assert torch.equal(kept(images()).pooled, model(images()).pooled)


@pytest.mark.parametrize("name", ["swin-t", "cait-xxs24", "dalle/8"], ids=["swin", "cait", "cnn"])
def test_networks_without_a_place_for_prompts_are_refused(name):
    with pytest.raises(ValueError, match=r"--adapt vpt needs a plain transformer .* choose --adapt lora"):
        adapters.insert(backbones.outline(name=name, image_size=32), "vpt")


# of KMnP/vpt 4410440, PromptedTransformer, in fp64: six pooled values, gradients by layer and prompt
PUBLISHED = {
    False: (
        [-1.552015, -1.9733898, 2.5174583, 0.1425736, 1.3503194, -0.7681808],
        [[-0.5296568, 0.7698652, -0.1208994]],
    ),
    True: (
        [-1.7254154, -1.8327164, 2.5299788, 0.1708026, 1.4470967, -0.8857511],
        [
            [-0.3770886, 0.886458, -0.1230934],
            [-0.1636307, 0.0248324, 0.0244765],
            [-0.0986962, 0.2010443, -0.0129037],
        ],
    ),
}


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_features_and_gradients_are_those_of_the_published_code(deep):
    model = backbones.build(**FAMILIES["vit"] | {"depth": 3}).eval()
    adapters.insert(model, "vpt", {"prompts": 3, "deep": deep})
    for i, (name, p) in enumerate(sorted(model.double().named_parameters())):
        one = name.endswith("weight") and "norm" in name
        p.data.copy_(wave(*p.shape, phase=float(i), scale=0.3) + one)
    pooled = model(wave(2, 3, 16, 16)).pooled
    (pooled * wave(2, 24, phase=9.0)).sum().backward()
    values, gradients = PUBLISHED[deep]
    torch.testing.assert_close(pooled[0, :6], torch.tensor(values).double(), atol=1e-6, rtol=0)
    gradient = model.prompts.tokens.grad[:, :, 0]
    torch.testing.assert_close(gradient, torch.tensor(gradients).double(), atol=1e-6, rtol=0)
