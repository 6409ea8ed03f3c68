"""Attentive pooling: it begins as the mean of the patches, attends, and is rebuilt from its spec."""

import copy

import pytest
import torch

from omma import backbones
from omma.backbones import adapters

SPECS = {
    "token": {"name": "vit-n/8", "image_size": 32, "depth": 1, "pool": "token"},
    "mean": {"name": "vit-n/8", "image_size": 32, "depth": 1, "pool": "mean"},
    "swin": {"name": "swin-t", "image_size": 32, "depths": (1, 1), "dim": 16, "heads": (1, 2), "window": 2},
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_begins_as_the_mean_of_the_patches_and_its_query_learns(spec):
    torch.manual_seed(0)
    network, images = backbones.build(**spec), torch.randn(2, 3, 32, 32)
    before = network.eval()(images)
    adapters.insert(network, "attentive", {"heads": 3})
    after = network(images)
    assert torch.allclose(after.pooled, before.patches.mean(1), atol=1e-5)
    assert torch.equal(after.patches, before.patches)
    (many,) = network.encode_many([(network.tokenize(images), network.grid(32, 32))])
    assert torch.allclose(many.pooled, after.pooled, atol=1e-5)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"attentive"}
    after.pooled.square().sum().backward()
    assert network.attentive.query.grad.abs().max() > 0


def test_it_is_rebuilt_and_attends_to_what_its_query_asks_for():
    torch.manual_seed(0)
    network = backbones.build(**SPECS["mean"]).eval()
    adapters.insert(network, "attentive")
    pool = network.attentive
    with torch.no_grad():
        pool.query.copy_(pool.query.normal_() * 100)
    rebuilt = backbones.build(**network.spec()).eval()
    rebuilt.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 32, 32)
    features = network(images)
    assert torch.equal(rebuilt(images).pooled, features.pooled)
    assert torch.equal(copy.deepcopy(network)(images).pooled, features.pooled)
    keys = pool.key(pool.norm(features.patches)).view(2, 16, pool.heads, -1)
    chosen = (keys * pool.query.view(pool.heads, -1)).sum(-1).argmax(1)  # of so large a query: a hard choice
    values = features.patches.view(2, 16, pool.heads, -1)
    expected = torch.stack([values[:, :, h][range(2), chosen[:, h]] for h in range(pool.heads)], 1).flatten(1)
    assert torch.nn.functional.cosine_similarity(expected, features.pooled).min() > 0.9
