"""The classical networks: sizes written down in their papers, and what they do with images of other sizes."""

import pytest
import torch
import torch.nn.functional as F

from omma import backbones
from omma.backbones import classic


def build(name, image_size=32, **options):
    torch.manual_seed(0)
    return backbones.build(name=name, image_size=image_size, **options).eval()


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85)]
)
def test_residual_networks_have_the_papers_size(name, millions):
    """[He 2015, table 6], which counts the classifier of ten classes too."""
    network = build(name)
    assert (parameters(network) + 650) / 1e6 == pytest.approx(millions, abs=0.006)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) + 1 == int(name.removeprefix("resnet"))
    assert network.grid(32, 32) == (8, 8)


def test_the_number_of_parameters_by_hand():
    assert parameters(build("linear", dim=10)) == 3072 * 10
    assert parameters(build("mlp")) == 3073 * 512 + 513 * 512
    assert parameters(build("lenet", channels=1)) == 26 * 6 + 151 * 16 + 401 * 120 + 121 * 84


def test_linear_is_linear():
    network = build("linear", dim=5)
    x, y = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    both = network(2 * x - y).pooled
    torch.testing.assert_close(both, 2 * network(x).pooled - network(y).pooled, rtol=1e-4, atol=1e-5)


def test_other_sizes_are_resized_to_the_networks_own():
    for name in ("linear", "mlp"):
        network = build(name, image_size=8)
        x = torch.randn(2, 3, 12, 20)
        small = F.interpolate(x, (8, 8), mode="bilinear", antialias=True)
        torch.testing.assert_close(network(x).pooled, network(small).pooled)
        assert network(x).grid == (1, 1)


def test_lenet_pads_digits_and_slides_over_larger_images():
    network = build("lenet", channels=1)
    digit = torch.randn(1, 1, 28, 28)
    torch.testing.assert_close(network(digit).pooled, network(F.pad(digit, (2, 2, 2, 2))).pooled)
    large = torch.randn(1, 1, 40, 36)
    features = network(large)
    assert features.grid == (3, 2)
    corner = network(large[:, :, 4:36, 4:36]).pooled
    torch.testing.assert_close(features.patches[:, 3], corner, rtol=1e-4, atol=1e-5)


def test_shortcuts_have_no_parameters():
    block = classic.ResidualBlock(4, 8, 2, 0.0).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 4, 5, 5)
    out = block(x)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2])
    assert not out[:, 4:].any()


def test_dropout_acts_in_training_only_and_can_be_turned_off():
    network, x = build("mlp"), torch.randn(4, 3, 32, 32)
    assert torch.equal(network(x).pooled, network(x).pooled)
    network.train()
    assert not torch.equal(network(x).pooled, network(x).pooled)
    network.drop_nothing()
    assert torch.equal(network(x).pooled, network.eval()(x).pooled)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lenet", {"dim": 3}, "dim=3 of lenet: it has no such option"),
        ("linear", {"depth": 3}, "depth=3 of linear: it has no such option"),
        ("resnet20", {"dropout": 0.5}, "no such option"),
        ("mlp", {"dropout": 1.0}, r"in \[0, 1\)"),
        ("mlp", {"depth": 0}, "depth"),
        ("resnet50", {}, "CIFAR's are of 20, 32, 44, 56, 110 layers; ImageNet's are timm:resnet50"),
    ],
)
def test_what_they_cannot_have(name, options, words):
    with pytest.raises(ValueError, match=words):
        build(name, **options)


def test_stochastic_depth_is_said_to_be_ignored(caplog):
    build("lenet", drop_path=0.1)
    assert "lenet has no stochastic depth" in caplog.text
