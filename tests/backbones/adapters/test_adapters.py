"""What holds for adapters of every kind."""

import pytest
import torch

from omma import backbones
from omma.backbones import adapters
from omma.core.protocols import Preprocess
from omma.weights import store

SPEC = {"name": "vit-n/4", "image_size": 16, "depth": 2, "dim": 24, "heads": 2, "hidden": 48}


def network(**options: object) -> backbones.Backbone:
    torch.manual_seed(0)
    return backbones.build(**SPEC, **options)


def test_bias_trains_biases_alone_and_leaves_a_plain_network():
    adapted = network()
    adapters.insert(adapted, "bias")
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in adapted.named_parameters() if name.endswith(".bias")}
    assert adapters.merged(adapted).spec() == network().spec()


def test_the_frozen_network_stays_in_evaluation_mode():
    adapted = network(drop_path=0.5)
    adapters.insert(adapted, "bias")
    adapted.train()
    assert not any(module.training for module in adapted.modules())


def test_unknown_kinds_and_options_are_refused():
    with pytest.raises(ValueError, match="adapt"):
        adapters.insert(network(), "lorra")
    with pytest.raises(ValueError, match=r"--adapt\.rank: bias has no such option"):
        adapters.insert(network(), "bias", {"rank": 4})


def test_a_spec_rebuilds_the_adapter(tmp_path):
    adapted = network()
    adapters.insert(adapted, "bias")
    rebuilt = backbones.build(**adapted.spec())
    assert rebuilt.adapter == "bias"
    assert rebuilt.spec() == adapted.spec()
    preprocess = Preprocess(
        size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    store.save(tmp_path, adapted, preprocess)
    assert store.load(tmp_path).encoder.adapter == "bias"
