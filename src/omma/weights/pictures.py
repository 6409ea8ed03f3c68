"""Pictures as users hold them made a network's input."""

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.protocols import Images, Preprocess
from omma.data.batches.preprocess import load_batch
from omma.data.sources.pictures import Picture as Picture
from omma.data.sources.pictures import PictureList, Pictures, pictures
from omma.features.extract import with_channels


class Transform(Preprocess):
    """A model's preprocessing, which can be called on images."""

    @classmethod
    def of(cls, preprocess: Preprocess) -> Self:
        """The same preprocessing, callable."""
        return cls(
            **{field.name: getattr(preprocess, field.name) for field in dataclasses.fields(Preprocess)}
        )

    def __call__(self, images: Pictures, threads: int = 4) -> Float[Tensor, "b c size size"]:
        """The network's input, float32 on the CPU, for one image (b = 1) or several.

        images: all that `Model.embed` takes. Raises ValueError that names the first that cannot be read.
        """
        none = torch.zeros(0, self.channels, self.size, self.size)
        return torch.cat([none, *self.batches(images, 64, threads)])

    def batches(self, images: Pictures, batch: int, threads: int) -> Iterator[Float[Tensor, "b c size size"]]:
        """The same, a batch at a time; at most one batch of a generator is in memory."""
        if batch < 1 or threads < 1:
            raise ValueError(f"batch={batch}, threads={threads}: both must be at least 1")
        for collection in self._collections(images, batch):
            for start in range(0, len(collection), batch):
                indices = np.arange(start, min(start + batch, len(collection)))
                tensor, _, bad = load_batch(collection, indices, self, threads)
                for index, reason in bad:
                    raise ValueError(f"{collection.path(index)}: {reason}; leave it out or replace it")
                yield tensor

    def _collections(self, images: Pictures, batch: int) -> Iterator[Images]:
        """The images as collections; a list, generator or data set becomes one for each batch."""
        if isinstance(images, Images):
            yield with_channels(images, self.channels)
            return
        eight_bit = set(self.low) == {0.0} and set(self.high) == {255.0}
        white = getattr(self, "full_scale", 255.0 if eight_bit else None)
        rest, start = pictures(images), 0
        while chunk := list(islice(rest, batch)):
            yield PictureList(chunk, self.channels, white, start=start)
            start += len(chunk)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Preprocess):
            return NotImplemented
        return dataclasses.astuple(self) == dataclasses.astuple(other)

    __hash__ = Preprocess.__hash__
