"""Which images a model was trained on, by content: wherever they lie, and whatever their source is named.

A copy, a subfolder, a table or an archive of the same files holds the same images. Files that were encoded
again, and the same pixels in another form, are not recognised.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt64

from omma.data.sources import identity
from omma.data.sources.indexed import IndexedImages


@dataclass(frozen=True)
class TrainedOn:
    """The images that a run was trained on."""

    keys: UInt64[np.ndarray, "k"]  # hashes of their content
    images: int  # of which `keys` are all, or a random sample

    @property
    def share(self) -> float:
        """Of the images, those whose keys are known."""
        return len(self.keys) / max(self.images, 1)

    def among(self, images: IndexedImages) -> int:
        """How many of these images are among those known."""
        keys, is_read = images.identity.contents(np.arange(len(images)))
        return int(np.isin(keys[is_read], self.keys).sum())


def read(model: Path) -> TrainedOn | None:
    """What the record beside a model, its folder or file, says; None without one, or with a damaged one."""
    stored = identity.read((model if model.is_dir() else model.parent) / identity.RECORD)
    if stored is None:
        return None
    table = stored[0].filter(stored[0]["trained"])
    keys = table["content"].drop_null().to_numpy().astype(np.uint64)
    return TrainedOn(keys, len(table)) if len(keys) else None
