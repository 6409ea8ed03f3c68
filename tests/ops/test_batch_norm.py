"""Batch norms of an untrained network get the statistics of given inputs, for a while."""

import torch
from torch import nn

from omma.ops.batch_norm import BatchNorm, calibrated


def test_statistics_are_those_of_the_batches_and_then_as_before():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), BatchNorm(4), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    inputs = 5 + 3 * torch.randn(64, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    with calibrated(network, inputs.split(32)):
        out = network(inputs)
        assert not network.training
        assert out.mean(0).abs().max() < 0.05
        assert (out.std(0) - 1).abs().max() < 0.05
    assert network.training
    assert all(module.training for module in network.modules())
    assert network[1].momentum == 0.1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_without_batch_norms_stays_as_it_is():
    with calibrated(nn.Linear(3, 4).train(), iter(())):
        pass
