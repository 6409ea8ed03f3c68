"""Small models, and images with one bright square, for the tests of explanations."""

from typing import Any

import numpy as np
import torch

from omma import backbones
from omma.core.preprocess import Preprocess
from omma.core.protocols import NO_EXTRAS, Backbone, Extras, Features
from omma.inspection.kinds import Subject
from omma.inspection.maps import subject_of
from omma.weights import Model

TINY = {"depth": 2, "dim": 32, "heads": 2, "hidden": 64}


def preprocess(size: int) -> Preprocess:
    return Preprocess(size=size, channels=3, low=(0,) * 3, high=(255,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3)


def classifier(dim: int, classes: int = 3, seed: int = 1) -> Extras:
    weight = torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed))
    names = [f"class {i}" for i in range(classes)]
    return Extras({"classifier.weight": weight, "classifier.bias": torch.zeros(classes)}, {"classes": names})


def model(name: str = "vit/4", size: int = 16, *, classified: bool = True, **options: Any) -> Model:
    """A random network; `vit/4` is tiny."""
    torch.manual_seed(0)
    shape = TINY if name.split("/")[0] == "vit" else {}
    encoder = backbones.build(name=name, image_size=size, channels=3, **{**shape, **options})
    return Model(encoder, preprocess(size), {}, classifier(encoder.dim) if classified else NO_EXTRAS)


def subject(name: str = "vit/4", n: int = 2, size: int = 16, *, classified: bool = True, **options: Any):
    """A random network, and noise."""
    made = model(name, size, classified=classified, **options)
    return subject_of(made, noise(n, size))[0]


def noise(n: int, size: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Brightness(Backbone):
    """Its features are the mean brightness of each cell of 4 x 4 pixels; pooled: their mean."""

    dim, patch, channels, drops_tokens, name, prefix = 2, 4, 3, False, "brightness", 0

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def tokenize(self, images, keep=None):
        cells = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4).flatten(2).transpose(1, 2)
        return self.scale * torch.cat([cells, torch.ones_like(cells)], -1)

    def encode(self, tokens, grid, keep=None):
        return Features(tokens.mean(1), tokens, grid)

    def spec(self):
        return {"name": self.name}


def squares(n: int, size: int = 32, side: int = 6, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Grey images [n, 3, size, size] with one bright square each, and its top, left, bottom, right."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, size - side + 1, size=(n, 2))
    images = torch.zeros(n, 3, size, size)
    for image, (top, left) in zip(images, corner):
        image[:, top : top + side, left : left + side] = 2.0
    return images, np.concatenate([corner, corner + side], 1)


def bright(images: torch.Tensor) -> Subject:
    """A classifier of brightness, asked about class "bright", whose logit is the mean brightness."""
    extras = Extras(
        {"classifier.weight": torch.tensor([[0.0, 0.0], [1.0, 0.0]])}, {"classes": ["dark", "bright"]}
    )
    made = Model(Brightness(), preprocess(images.shape[-1]), {}, extras)
    return subject_of(made, images, "bright")[0]
