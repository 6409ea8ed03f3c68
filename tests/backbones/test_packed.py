"""Crops of several sizes in one tensor: as if each had gone through the network by itself."""

import pytest
import torch

from omma import backbones
from omma.backbones.layers.transformer import Transformer
from omma.core.protocols import Backbone
from omma.ops import depth, packing

MODELS = {
    "vit-n/4": {"layer_scale": 0.1, "registers": 2, "depth": 3},
    "beit-ti/8": {"depth": 2, "bias": "shared"},
    "dinov3-s/8": {"depth": 2, "layer_scale": 0.1},
    "vitc-15mf": {},
}
BF16 = 0.01  # of the norm of all gradients: what rounding to bf16 may change


def encoder(name, **options):
    torch.manual_seed(0)
    return backbones.build(name=name, image_size=32, channels=3, **(MODELS[name] | options)).train()


def learned(network, encode_many=Transformer.encode_many, dtype=torch.float32):
    """Features and gradients, both of two large and three small crops of four images."""
    torch.manual_seed(1)
    network.zero_grad()
    crops = [torch.randn(8, 3, 32, 32).to(dtype), torch.randn(12, 3, 16, 16).to(dtype)]
    tokens = [(network.tokenize(x), network.grid(*x.shape[-2:])) for x in crops]
    seen = encode_many(network, tokens)
    loss = sum(f.pooled.float().square().mean() + f.patches.float().sin().mean() for f in seen)
    loss.backward()
    grads = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return [(f.pooled, f.patches) for f in seen], grads


@pytest.fixture
def last_kept(monkeypatch):
    """Stochastic depth keeps the last samples of each length, in whatever order they are asked for."""

    def last(b, drop, device, exact):
        return torch.arange(b)[-round(b * (1 - drop)) :]

    monkeypatch.setattr(depth, "_draw", last)


@pytest.mark.parametrize("name", MODELS)
def test_with_the_same_samples_dropped(last_kept, name):
    network = encoder(name, drop_path=0.4)
    assert network.packs
    packed = learned(network)
    torch.testing.assert_close(packed, learned(network, Backbone.encode_many), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(packed[0][0][0], learned(network.eval())[0][0][0])  # some were dropped


@pytest.mark.parametrize("name", MODELS)
def test_in_bf16_within_its_rounding(last_kept, name):
    network = encoder(name, drop_path=0.2)
    exact = flat(learned(network)[1])
    network.bfloat16()
    packed, apart = (
        flat(learned(network, many, torch.bfloat16)[1])
        for many in (Transformer.encode_many, Backbone.encode_many)
    )
    assert relative(packed, apart) < BF16
    assert relative(packed, exact) < relative(apart, exact) + BF16 / 5


def flat(grads):
    return torch.cat([g.double().flatten() for g in grads.values()])


def relative(x, y):
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize("name", ["vit-n/4", "beit-ti/8"])
def test_activations_computed_anew(name):
    network = encoder(name, drop_path=0.3)
    plain = learned(network)
    network.recompute = True
    again = learned(network)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_each_block_is_called_once():
    network, calls = encoder("vit-n/4"), []
    for block in network.blocks:
        block.register_forward_hook(lambda module, given, out: calls.append(out.shape))
    learned(network)
    tokens = 8 * (1 + 2 + 64) + 12 * (1 + 2 + 16)
    assert calls == [(1, tokens, network.dim)] * len(network.blocks)


def test_one_length_is_a_batch_as_it_is():
    x = torch.randn(2, 3, 4)
    assert packing.pack([x]) is x
    assert packing.unpack(x, [(2, 3)]) == [x]
