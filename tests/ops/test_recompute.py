"""Blocks that forget their activations give the same values and gradients, and hold less until then."""

import itertools

import numpy as np
import pytest
import torch

from omma import backbones
from omma.core.protocols import Batch, Clock, Context, Key
from omma.methods import simclr
from omma.train.precision import Cast

MODELS = {
    "vit-n/8": {},
    "beit-ti/8": {"depth": 2, "bias": "shared"},
    "swin-t": {"dim": 24, "depths": (2, 2), "heads": (1, 2), "window": 4},
    "cait-xxs24": {"depth": 2, "patch": 8},
}


def encoder(name):
    torch.manual_seed(0)
    return backbones.build(name=name, image_size=32, channels=3, drop_path=0.3, **MODELS[name]).train()


def gradients(network, images):
    torch.manual_seed(1)  # of stochastic depth
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        features = network(images)
    loss = features.pooled.square().sum() + features.patches.sin().sum()
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in network.named_parameters()}, sum(kept)


@pytest.mark.parametrize("name", MODELS)
def test_as_if_nothing_was_forgotten(name):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, forgetful = encoder(name), encoder(name)
    forgetful.recompute = True
    loss, grads, held = gradients(plain, images)
    other_loss, other_grads, held_less = gradients(forgetful, images)
    assert other_loss == loss
    for parameter, grad in grads.items():
        assert torch.equal(other_grads[parameter], grad), parameter
    assert held_less < held / 3


def test_with_weights_cast_for_the_step_and_taken_back():
    """In bf16 the blocks' weights are lent to them, in the forward pass alone."""
    found = []
    for forget in (False, True):
        network = encoder("vit-n/8")
        network.recompute = forget
        config = simclr.Config(hidden=16, out=8)
        method = simclr.Method(network, config, Context(image_size=32)).train()
        torch.manual_seed(2)
        views = torch.randn(4, 2, 3, 32, 32)
        batch = Batch((views,), Key(0, np.zeros(4, np.int64), np.arange(4)))
        torch.manual_seed(1)
        output = Cast(method, torch.bfloat16)(batch, Clock(0, 2, 0.0))
        output.loss.backward()
        found.append((float(output.loss.detach()), [p.grad for p in network.parameters()]))
    (loss, grads), (other_loss, other_grads) = found
    assert other_loss == loss
    pairs = list(itertools.zip_longest(grads, other_grads))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(a.any() for a, _ in pairs)


def test_nothing_is_kept_to_be_forgotten_without_gradients():
    network = encoder("vit-n/8").eval()
    network.recompute = True
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert network(images).pooled.shape == (1, network.dim)
