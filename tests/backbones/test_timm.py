"""Our ViT and timm's load each other's weights and give equal features."""

import pytest
import torch

from omma import backbones
from omma.weights.export import timm_twin

pytest.importorskip("timm", reason="timm (dev group) is not installed")


@pytest.mark.parametrize(
    "options",
    [{}, {"pool": "mean"}, {"registers": 4}, {"layer_scale": 0.1}, {"positions": "sincos"}, {"channels": 6}],
    ids=str,
)
@pytest.mark.parametrize(("name", "size"), [("vit-ti/4", 32), ("vit-n/4", 32), ("vit-s/16", 64)])
def test_strict_and_equal(name, size, options):
    torch.manual_seed(0)
    ours = backbones.build(name=name, image_size=size, **options).eval()
    theirs = timm_twin(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, ours.channels, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).pooled, theirs(x), rtol=1e-4, atol=2e-5)
        patches = theirs.forward_features(x)[:, ours.prefix :]
        torch.testing.assert_close(ours(x).patches, patches, rtol=1e-4, atol=2e-5)
    ours.load_state_dict(theirs.state_dict(), strict=True)


def test_other_sizes_as_timm_interpolates_them():
    torch.manual_seed(0)
    ours = backbones.build(name="vit-ti/4", image_size=32).eval()
    theirs = timm_twin(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, 48, 42)  # padded by both
    with torch.no_grad():
        torch.testing.assert_close(ours(x).pooled, theirs(x), rtol=1e-4, atol=2e-5)
