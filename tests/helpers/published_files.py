"""Helpers: networks with random values in all parameters, and files with other names."""

import math
import re

import torch
from torch import Tensor, nn

from omma import backbones
from omma.weights.published import fit, recognise

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Randomise all parameters, since zeros and ones could hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in network.state_dict().items():
            if not x.is_floating_point() or "freqs" in name or "periods" in name:
                continue
            noise = torch.randn(x.shape, generator=generator)
            if x.ndim > 1 and "table" not in name and "embed" not in name.rsplit(".", 1)[-1]:
                noise /= math.sqrt(x[0].numel())
            elif "running_var" in name:
                noise = noise.abs() + 0.5
            elif name.endswith("weight") and x.ndim == 1:  # norms
                noise = 1 + 0.3 * noise
            x.copy_(noise)
    return network.eval()


def renamed(state: dict, *rules: tuple[str, str], prefix: str = "") -> dict:
    """The same tensors, renamed by regular expressions, behind a prefix."""
    result = {}
    for name, x in state.items():
        for pattern, by in rules:
            name = re.sub(pattern, by, name)
        result[prefix + name] = x
    return result


def fitted(state: dict, source: str = "file.pth", **options) -> tuple:
    """A file's network as a backbone of another size, patch, channels or window; and the report."""
    recognised = recognise(state, source=source)
    encoder = backbones.build(**(recognised.spec | options))
    return encoder, fit(recognised, encoder)


def same(encoder: nn.Module, theirs: nn.Module, size: int, tolerance: float = 1e-4) -> None:
    """Assert that omma's features equal those of timm's network."""
    x = torch.randn(2, encoder.channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, features = encoder(x), theirs.forward_features(x)
        if features.ndim == 4:
            features = features.permute(0, 2, 3, 1) if encoder.name.startswith("timm") else features
            features = features.flatten(1, 2)
        patches = features[:, getattr(theirs, "num_prefix_tokens", 0) :]
        pooled = features[:, 0] if encoder.pool == "token" else patches.mean(1)
        if encoder.pool == "mean_fc_norm":
            pooled = theirs.fc_norm(pooled)
    assert (ours.patches - patches).abs().max() < tolerance
    assert (ours.pooled - pooled).abs().max() < tolerance


def build(name: str = "vit/8", size: int = 32, seed: int = 0, **options) -> backbones.Backbone:
    """A small backbone with random parameters; options override the defaults."""
    shape = {} if name.startswith(("swin", "cait")) else {"depth": 2, "dim": 192, "heads": 3, "hidden": 384}
    return randomised(backbones.build(name=name, image_size=size, **(shape | options)), seed)


def images(channels: int = 3, size: int = 32, equal: bool = False) -> Tensor:
    """Two images of noise; equal: all channels are the same."""
    x = torch.randn(2, 1 if equal else channels, size, size, generator=torch.Generator().manual_seed(1))
    return x.expand(-1, channels, -1, -1) if equal else x


@torch.no_grad()
def largest_difference(a: nn.Module, b: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
    """The largest difference of two encoders' patch features, of x and, where it is passed, of y."""
    return (a(x).patches - b(x if y is None else y).patches).abs().max()
