"""Networks of timm and torchvision, drawn with a seed: each gives features, or is refused in one line."""

import random

import pytest
import torch

from omma import backbones
from omma.core.protocols import NoAttention

timm = pytest.importorskip("timm", reason="timm (dev group) is not installed")
models = pytest.importorskip("torchvision.models", reason="torchvision (dev group) is not installed")

REFUSED = ("torchvision:vit_",)
MOST = 30e6  # parameters of the networks that are run


def works(name):
    """Outline, features and attention of one network."""
    image_size = 224
    if name.startswith("timm:"):
        image_size = timm.get_pretrained_cfg(name.removeprefix("timm:")).input_size[-1]
    outline = backbones.outline(name=name, image_size=image_size)
    if sum(p.numel() for p in outline.parameters()) > MOST:
        return
    network = backbones.build(name=name, image_size=image_size).eval()
    images = torch.randn(1, 3, image_size, image_size)
    with torch.inference_mode():
        features = network(images)
    assert features.pooled.shape == (1, network.dim)
    assert features.grid == network.grid(image_size, image_size)
    assert features.patches.shape == (1, features.grid[0] * features.grid[1], network.dim)
    with pytest.raises(NoAttention):
        network.attention(images)


def works_or_is_refused(name):
    try:
        works(name)
    except ValueError as error:
        message = str(error)
        if "\n" in message or not any(part in name for part in REFUSED):
            raise


@pytest.mark.parametrize(
    "name", ["torchvision:regnet_y_400mf", "torchvision:vit_b_16", "timm:test_byobnet", "timm:pit_ti_224"]
)
def test_a_handful(name):
    works_or_is_refused(name)


@pytest.mark.slow
def test_sixty_drawn():
    rng = random.Random(0)
    drawn = [f"timm:{name}" for name in rng.sample(timm.list_models(), 40)]
    drawn += [f"torchvision:{name}" for name in rng.sample(models.list_models(module=models), 20)]
    for name in drawn:
        works_or_is_refused(name)
