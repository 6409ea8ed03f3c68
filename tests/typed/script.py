"""A user's script, for type checkers only: what `import omma` offers has types (tests/test_typing.py)."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from torch import Tensor, nn

import omma
from omma.pretraining.events import Result
from omma.weights.embedder import Embedder
from omma.weights.model import Model

assert_type(omma.__version__, str)

model = omma.load("runs/photos")
assert_type(model, Model)
assert_type(model.embed(["a.jpg", "b.png"]), np.ndarray)

result = omma.pretrain("photos", out=Path("runs/photos"), budget="30m")
assert_type(result, Result)
assert_type(result.steps, int)

embedder = omma.Embedder("runs/photos")
assert_type(embedder, Embedder)
assert_type(embedder.fit(None), Embedder)

objective = omma.Objective("simclr", encoder=omma.wrap(nn.Flatten()), image_size=32, steps=10)
assert_type(objective(torch.zeros(2, 3, 32, 32)), Tensor)


@omma.network
def build(channels: int) -> nn.Module:
    return nn.Conv2d(channels, 8, 3)


assert_type(build(3), nn.Module)  # the mark keeps the function's own type
assert_type(omma.pretrain("photos", model=build), Result)
