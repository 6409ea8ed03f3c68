"""Small networks of all families with all parameters random, for tests of exports."""

import torch

from omma import backbones
from omma.core.protocols import Preprocess


def network(name, **options):
    """In evaluation mode; a transformer has two layers by default. 32 px, 28 for patches of 14."""
    torch.manual_seed(0)
    size = options.pop("image_size", 28 if name.endswith("/14") else 32)
    if "depth" in backbones.options(name):
        options.setdefault("depth", 2)
    encoder = backbones.build(name=name, image_size=size, **options).eval()
    if ":" not in name:
        for parameter, p in encoder.named_parameters():
            centre = 1.0 if p.ndim == 1 and "norm" in parameter and parameter.endswith("weight") else 0.0
            p.data.copy_(centre + torch.randn_like(p) * (0.05 if p.ndim > 1 else 0.2))
    return encoder


def preprocess_of(encoder, low=0.0, high=255.0):
    c = encoder.channels
    mean, std = tuple(0.4 + 0.05 * i for i in range(c)), tuple(0.2 + 0.02 * i for i in range(c))
    return Preprocess(
        size=encoder.image_size,
        channels=c,
        low=(low,) * c,
        high=(high,) * c,
        mean=mean,
        std=std,
        crop_share=0.9,
    )


def noise(encoder, sizes="fixed"):
    """Two images of the usual size; where other sizes are read, three more, not square."""
    size, patch = encoder.image_size, encoder.patch
    shapes = [(2, size, size)]
    if sizes != "fixed":
        shapes.append((3, size + patch, size + 2 * patch))
    if sizes == "any":
        shapes.append((1, size + patch - 3, size + 2 * patch - 1))
    return [torch.randn(b, encoder.channels, h, w) for b, h, w in shapes]
