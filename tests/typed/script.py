"""A user's script, for type checkers only: what `import omma` offers has types (tests/test_typing.py)."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

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


class Photos(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 8, 8), index


# whatever a program holds are images to every verb
picture = Image.new("RGB", (8, 8))
photos = Photos()
omma.pretrain(photos, out="runs/photos")
omma.pretrain(["a.jpg", Path("b.jpg")])
omma.pretrain(np.zeros((2, 8, 8, 3), np.uint8))
omma.finetune("runs/photos", photos)
omma.predict(model, photos, "classes.csv")
omma.predict(model, ["a.jpg", "b.jpg"], "classes.csv")
omma.embed(model, torch.zeros(2, 3, 8, 8), "vectors.parquet")
omma.evaluate(model, TensorDataset(torch.zeros(2, 3, 8, 8), torch.arange(2)))
omma.explain(model, picture)
omma.explain(model, [picture, "b.jpg"], gallery=photos)
omma.explore(model, [picture], "map.html")
omma.index(model, photos, "photos.index")
omma.clean(photos, out="findings.csv", against=["a.jpg"])
omma.curate(model, photos, 1, "list.csv", exclude=[Path("a.jpg")])
omma.export(model, "onnx", images=photos)
omma.report("runs/photos", photos)

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
