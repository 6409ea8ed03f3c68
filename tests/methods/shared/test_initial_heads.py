"""Heads, decoders and mask tokens begin as the published code of the encoder's `init` draws them."""

from typing import Any

import pytest
import torch
from torch import nn

from omma import backbones
from omma.core.protocols import Context
from omma.methods import mae, simmim
from omma.methods.shared.masked_head import MaskedHead

NARROW: dict[str, Any] = {"depth": 1, "dim": 128, "heads": 2, "hidden": 64}
NORMAL, ONE_SIGMA = 1.0, 0.5396  # deviation of a normal distribution that is cut at one deviation


def encoder(init, name="beit/4", **shape: Any):
    torch.manual_seed(0)
    return backbones.build(name=name, image_size=16, init=init, **(shape or NARROW))


def has_deviation(x, std):
    """To 5 standard errors."""
    assert float(x.detach().std()) == pytest.approx(std, rel=5 / (2 * x.numel()) ** 0.5)


@pytest.mark.parametrize(
    ("init", "std", "part"), [("vit", 0.02, NORMAL), ("beit", 0.02, ONE_SIGMA), ("eva", 0.015, ONE_SIGMA)]
)
def test_mask_token_and_predictor(init, std, part):
    head = MaskedHead(encoder(init), 300)
    for x in (head.mask_token, head.predict.weight):
        has_deviation(x, part * std)
        assert (float(x.detach().abs().max()) <= std) == (part == ONE_SIGMA)
    assert not head.predict.bias.any()


@pytest.mark.parametrize("init", ["vit", "mae"])
def test_decoder(init):
    """facebookresearch/mae efb2a80, initialize_weights: Glorot's uniform distribution; ours is normal."""
    net = mae.Method(encoder(init, "vit/4"), mae.Config(decoder_depth=1), Context(image_size=16))
    for layer in net.decoder.modules():
        if isinstance(layer, nn.Linear):
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            has_deviation(layer.weight, 0.02 if init == "vit" else bound / 3**0.5)
            assert init == "vit" or float(layer.weight.detach().abs().max()) <= bound
            assert not layer.bias.any()
    has_deviation(net.decoder.mask_token, 0.02)


@pytest.mark.parametrize("swin", [False, True])
def test_mask_token_of_simmim(swin):
    """microsoft/SimMIM d3e29bc: its ViT cuts at one deviation, its Swin at two units."""
    shape = {"dim": 128, "depths": (1, 1), "heads": (2, 2)}
    network = encoder("simmim", "swin", **shape) if swin else encoder("simmim")
    net = simmim.Method(network, simmim.Config(unit=8 if swin else 4), Context(image_size=16))
    has_deviation(net.mask_token, 0.02 * (NORMAL if swin else ONE_SIGMA))
    assert (float(net.mask_token.detach().abs().max()) <= 0.02) == (not swin)
    has_deviation(net.predict.weight, (3 * net.predict.in_features) ** -0.5)  # PyTorch's default
