"""Networks of the reference libraries with random values everywhere, and files in official names made of them."""

import math
import re

import torch
from torch import nn

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """No parameter keeps a value that a mistake could hide behind: no zeros, no ones."""
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
    found = {}
    for name, x in state.items():
        for pattern, by in rules:
            name = re.sub(pattern, by, name)
        found[prefix + name] = x
    return found
