"""Networks of other libraries: their stages, and the grids of their tokens."""

import pytest
import torch
from torch import nn

from omma.backbones.layers import foreign

timm = pytest.importorskip("timm", reason="timm (dev group) is not installed")
torchvision = pytest.importorskip("torchvision", reason="torchvision (dev group) is not installed")


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("timm:resnet50", ["layer1", "layer2", "layer3", "layer4"]),
        ("timm:resnetv2_101x3_bit", ["stages.0", "stages.1", "stages.2", "stages.3"]),
        ("timm:vgg16", [f"features.{i}" for i in (3, 8, 15, 22, 29, 30)]),
        ("torchvision:vgg16", [f"features.{i}" for i in (3, 8, 15, 22, 29)]),
        ("timm:regnety_002", ["s1", "s2", "s3", "s4"]),
        ("timm:densenet121", [*(f"features.denseblock{i}" for i in (1, 2, 3)), "features.norm5"]),
        ("timm:mobilenetv3_small_050", [f"blocks.{i}" for i in (0, 1, 3, 5)]),
    ],
)
def test_stages(name, stages):
    source, _, model = name.partition(":")
    make = timm.create_model if source == "timm" else torchvision.models.get_model
    with torch.device("meta"):
        network = make(model)
    assert list(foreign.stages(network).values()) == stages


@pytest.mark.parametrize(
    ("n", "size", "grid"), [(49, (224, 224), (7, 7)), (54, (261, 173), (9, 6)), (40, (173, 261), (5, 8))]
)
def test_grid_of_tokens(n, size, grid):
    assert foreign.arrange(nn.Module(), "timm:some", n, size) == grid


def test_no_grid():
    with pytest.raises(ValueError, match="197 tokens of 224x224 px form no grid"):
        foreign.arrange(nn.Module(), "timm:some", 197, (224, 224))


def test_a_copy_without_values():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    twin = foreign.without_values(network)
    assert not twin.training
    assert {t.device.type for t in twin.state_dict().values()} == {"meta"}
    assert {t.device.type for t in network.state_dict().values()} == {"cpu"}
    assert network.training
