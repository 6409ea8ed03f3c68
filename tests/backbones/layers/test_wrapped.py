"""Any module that maps images to vectors or token maps is trained as a backbone."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from omma import backbones, methods
from omma.core.protocols import Batch, Clock, Context, Key

SIZE = 16


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()
    )


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 24), nn.ReLU(), nn.Linear(24, 10))


class Tokens(nn.Module):
    """A class token, then patches of 4 pixels."""

    def __init__(self):
        super().__init__()
        self.embed, self.first = nn.Conv2d(3, 6, 4, 4), nn.Parameter(torch.ones(1, 1, 6))

    def forward(self, images):
        patches = self.embed(images).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(images), -1, -1), patches], 1)


def test_maps_vectors_and_tokens_are_recognised():
    x = torch.randn(3, 3, SIZE, SIZE)
    module = cnn()
    network = backbones.wrap(module, image_size=SIZE)
    assert (network.dim, network.patch, network.grid(16, 24)) == (12, 4, (4, 6))
    features = network.eval()(x)
    torch.testing.assert_close(features.patches, module(x).flatten(2).transpose(1, 2))
    torch.testing.assert_close(features.pooled, module(x).mean((2, 3)))
    assert network.name == "wrapped:Sequential"

    module = mlp()
    network = backbones.wrap(module, image_size=SIZE, name="mine")
    assert (network.dim, network.patch, network.grid(16, 16), network.name) == (10, SIZE, (1, 1), "mine")
    torch.testing.assert_close(network(x).pooled, module(x))

    module = Tokens()
    network = backbones.wrap(module, image_size=SIZE, prefix=1)
    assert (network.dim, network.patch, network.grid(8, 16)) == (6, 4, (2, 4))
    features = network(x)
    assert features.prefix is not None
    torch.testing.assert_close(features.prefix, module(x)[:, :1])
    torch.testing.assert_close(features.pooled, module(x)[:, 1:].mean(1))


def test_wrapping_leaves_modes_and_statistics_alone():
    module = cnn()
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    backbones.wrap(module, image_size=SIZE)
    assert module.training
    assert not module[1].training
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


class Two(nn.Linear):
    def forward(self, input):
        return input, input


@pytest.mark.parametrize(
    ("module", "options", "reason"),
    [
        (cnn(), {"channels": 4}, r"cannot read images of 4x16x16 \(channels, height, width\): "),
        (mlp(), {"image_size": 8}, "cannot read images of 3x8x8"),
        (Two(1, 1), {}, r"gives a tuple: it must give vectors \[b, d\]"),
        (nn.Sequential(cnn(), nn.Flatten(0)), {}, r"for 2 images: it must give float vectors"),
        (nn.Flatten(), {}, "has no parameters"),
        (Tokens(), {}, "counted by prefix="),
        (cnn(), {"prefix": 1}, r"gives a map; only tokens \[b, n, d\] have one"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_in_a_line(module, options, reason):
    with pytest.raises(ValueError, match=reason) as error:
        backbones.wrap(module, **{"image_size": SIZE, **options})
    assert "\n" not in str(error.value)


def test_a_size_that_the_module_does_not_read_is_refused():
    network = backbones.wrap(mlp(), image_size=SIZE)
    with pytest.raises(ValueError, match="cannot read images of 3x8x8"):
        network(torch.randn(2, 3, 8, 8))


def test_it_cannot_be_rebuilt_by_name():
    with pytest.raises(ValueError, match="cannot rebuild by name: build it in your own code"):
        backbones.wrap(cnn(), image_size=SIZE).spec()


def vicreg(one, two):
    """Its three terms [Bardes 2021, arXiv 2105.04906, eq. 1 to 4]."""
    loss = (one - two).square().mean()
    for z in (one, two):
        z = z - z.mean(0)
        covariance = z.T @ z / (len(z) - 1)
        loss = loss + torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        loss = loss + (covariance - covariance.diag().diag()).square().sum() / z.shape[1]
    return loss


@pytest.mark.parametrize("module", [cnn, mlp])
def test_a_loss_of_ones_own_trains_it(module):
    torch.manual_seed(0)
    network = backbones.wrap(module(), image_size=SIZE)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    x = torch.randn(16, 3, SIZE, SIZE)
    losses = []
    for _ in range(20):
        loss = vicreg(network(x).pooled, network(x + 0.1).pooled)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["simclr", "dino", "moco"])
@pytest.mark.parametrize("module", [cnn, mlp])
def test_methods_train_it(name, module):
    """Gradients reach all of it, and a teacher is a copy that follows."""
    torch.manual_seed(0)
    file = methods.get(name)
    recipe = file.small(SIZE, "vitc-15mf")
    fields = {f.name for f in dataclasses.fields(recipe.config)}
    small = {"prototypes": 16, "head_hidden": 16, "head_bottleneck": 8, "hidden": 16, "out": 8}
    small |= {"crop_size": SIZE, "local_crops": 0}
    config = dataclasses.replace(recipe.config, **{k: v for k, v in small.items() if k in fields})
    network = backbones.wrap(module(), image_size=SIZE)
    method = file.Method(network, config, Context(image_size=SIZE, images=8))
    views = tuple(torch.randn(8, c.count, 3, c.size, c.size) for c in file.views(config, SIZE) if c.count)
    batch = Batch(views, Key(0, np.zeros(8, np.int64), np.arange(8)))
    output = method.train()(batch, Clock(1, 10, 0.1))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert any(p.grad.any() for p in network.parameters())
    with torch.no_grad():
        for p in network.parameters():
            p += 1
    exported, before = method.export_encoder(), copy.deepcopy(method.export_encoder().state_dict())
    method.after_step(Clock(1, 10, 0.1), [output.carry])
    if exported is not network:
        assert any(not torch.equal(x, before[k]) for k, x in exported.state_dict().items())
