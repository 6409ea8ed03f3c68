"""Real images that an exported network is compared on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.protocols import Backbone, Images, ImageSource, Preprocess
from omma.core.words import count
from omma.data.batches.preprocess import load_batch
from omma.data.sources import collection
from omma.weights.export.check import Reopened
from omma.weights.model import Model

IMAGES = 8  # that are compared, at most


def open_for(model: Model, images: ImageSource | None) -> Images:
    """The images that the user names, or those that the model was trained on."""
    if images is not None:
        return images if isinstance(images, Images) else collection.indexed(images)
    source = model.provenance.get("images")
    if not isinstance(source, str | Path) or not (Path(source).exists() or "://" in str(source)):
        missing = f" ({source} is not there)" if source else ""
        raise ValueError(
            f"the model's own images are unknown{missing}: give some with --images to compare on"
        )
    return collection.open_images(source)


def batches(
    encoder: Backbone, images: Images, preprocess: Preprocess, reopened: Reopened
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Real images: all at the model's size, a single one, and three of another shape if sizes are free."""
    usual = _readable(images, preprocess, IMAGES)
    yield usual
    yield usual[:1]
    if reopened.sizes != "fixed":
        size, patch = preprocess.size, encoder.patch
        other = _readable(images, replace(preprocess, size=size + 2 * patch), 3)
        odd = 1 if reopened.sizes == "any" else 0
        yield other[:, :, : size + patch, : size + 2 * patch - odd]


def _readable(images: Images, preprocess: Preprocess, most: int) -> Float[Tensor, "b c s s"]:
    """Up to `most` readable images from all over the collection."""
    spread = np.unique(np.linspace(0, len(images) - 1, 4 * most).astype(int))
    rows, reasons = [], []
    for i in np.concatenate([spread[k::4] for k in range(4)]):
        batch, good, bad = load_batch(images, np.array([i]), preprocess)
        rows += [batch] if good.all() else []
        reasons += [f"{images.path(int(i))}: {reason}" for _, reason in bad]
        if len(rows) == most:
            break
    if not rows:
        raise ValueError(f"none of {count(len(reasons), 'image')} can be read ({reasons[0]}): give others")
    return torch.cat(rows)
