"""Pictures as users hold them (paths, bytes, arrays, tensors, PIL images) made a network's input."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import IO, Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from omma.core.errors import line
from omma.core.protocols import BadImage, Images, Preprocess
from omma.data.batches.preprocess import load_batch
from omma.data.sources.decode import as_channels, as_values, decode
from omma.data.sources.decode_pillow import from_pillow
from omma.data.sources.readers import Files
from omma.features.extract import with_channels

Picture = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | np.ndarray | Tensor | Image.Image
)
Pictures = Picture | Images | Iterable[Picture]  # an array or tensor of four dimensions is a batch

SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Tensor, Image.Image)
OVERSHOOT = 0.25  # by which floats leave [0, 1] after a bicubic resize and still count as within it


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
        for collection in _collections(images, self, batch):
            for start in range(0, len(collection), batch):
                indices = np.arange(start, min(start + batch, len(collection)))
                tensor, _, bad = load_batch(collection, indices, self, threads)
                for index, reason in bad:
                    raise ValueError(f"{collection.path(index)}: {reason}; leave it out or replace it")
                yield tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Preprocess):
            return NotImplemented
        return dataclasses.astuple(self) == dataclasses.astuple(other)

    __hash__ = Preprocess.__hash__


class _Array(NamedTuple):
    """An array or tensor, and the lowest and highest value of the batch that it is from."""

    values: np.ndarray
    tensor: bool
    extremes: tuple[float, float] | None


def _collections(images: Pictures, preprocess: Preprocess, batch: int) -> Iterator[Images]:
    """The images as collections; a list or generator becomes one for each batch."""
    if isinstance(images, Images):
        yield with_channels(images, preprocess.channels)
        return
    if isinstance(images, str | os.PathLike) and os.path.isdir(images):
        raise ValueError(
            f"{os.fspath(images)} is a folder: omma.embed writes a table of the vectors of its images"
        )
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        whole = _array(images)
        images = [whole._replace(values=values) for values in whole.values]  # pyright: ignore[reportAssignmentType]
    elif isinstance(images, SINGLE) or hasattr(images, "read"):
        images = [images]  # pyright: ignore[reportAssignmentType]
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise ValueError(f"images are expected, one or a list of them, not {type(images).__name__}")
    rest, start = iter(images), 0
    while chunk := list(islice(rest, batch)):
        yield _PictureList(chunk, preprocess, start)
        start += len(chunk)


class _PictureList:
    """Some pictures with the interface of `Images`. start: number of the first in the user's list."""

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    splits: np.ndarray | None = None

    def __init__(self, pictures: Sequence[Any], preprocess: Preprocess, start: int = 0) -> None:
        self.pictures, self.preprocess, self.start = pictures, preprocess, start
        self.channels = preprocess.channels
        eight_bit = set(preprocess.low) == {0.0} and set(preprocess.high) == {255.0}
        self.white: float | None = getattr(preprocess, "full_scale", 255.0 if eight_bit else None)
        self.ranges = {"float32": (-np.inf, np.inf)}  # `read` returns floats in the model's units

    def __len__(self) -> int:
        return len(self.pictures)

    def path(self, i: int) -> str:
        picture = self.pictures[i]
        return (
            str(picture) if isinstance(picture, str | os.PathLike) else f"image {self.start + i} of the list"
        )

    def read(self, i: int, at_least: int | None = None) -> np.ndarray:
        picture = self.pictures[i]
        if isinstance(picture, np.ndarray | Tensor):
            picture = _array(picture)
        if isinstance(picture, _Array):
            extremes, values = picture.extremes, as_values(_channels_last(picture, self.channels))
        else:
            values = self._opened(picture, at_least)
            extremes = _extremes(values)
        return self._raw(as_channels(values, self.channels), extremes)

    def _opened(self, picture: Any, at_least: int | None) -> np.ndarray:
        """[h, w, c] of a file, its bytes, or what PIL has opened."""
        if isinstance(picture, Image.Image):
            try:
                picture.load()
                return as_values(from_pillow(picture))
            except Exception as error:  # PIL decodes a file only now
                raise BadImage(f"PIL cannot read it ({line(error)})") from error
        if isinstance(picture, str | os.PathLike):
            data = _content(os.fspath(picture))
        elif isinstance(picture, bytes | bytearray | memoryview):
            data = bytes(picture)
        elif hasattr(picture, "read"):
            data = picture.read()
        else:
            kind = type(picture).__name__
            raise BadImage(f"{kind} is no image: give a path, bytes, an array, a tensor or a PIL image")
        return decode(data, channels=self.channels, at_least=at_least)

    def _raw(self, values: np.ndarray, extremes: tuple[float, float] | None) -> np.ndarray:
        """Values in the model's units; floats in [0, 1] are scaled to those of its type of images."""
        white = self.white
        if extremes is None or white is None:
            return values
        low, high = extremes
        if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
            return values.astype(np.float32) * np.float32(white)
        if low < -OVERSHOOT and high < 16:
            raise BadImage(
                f"values from {low:.2g} to {high:.2g}: images that are normalised already go to model(images)"
            )
        return values

    def subset(self, indices: np.ndarray) -> "_PictureList":
        return _PictureList([self.pictures[int(i)] for i in indices], self.preprocess)


def _content(path: str | bytes) -> bytes:
    try:
        return Files("").content(os.fsdecode(path), None)
    except ValueError as error:
        raise error if isinstance(error, BadImage) else BadImage(line(error)) from error  # NUL in the name


def _array(values: np.ndarray | Tensor) -> _Array:
    """The array in memory, of a type that numpy has."""
    tensor = isinstance(values, Tensor)
    if isinstance(values, Tensor):
        try:
            values = values.detach().cpu()
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, without values, quantised
            raise BadImage(f"a tensor that numpy cannot hold ({line(error)})") from error
    return _Array(values, tensor, _extremes(values))


def _extremes(values: np.ndarray) -> tuple[float, float] | None:
    """The lowest and highest value of floats; None for integers, whose type tells their range."""
    if values.dtype.kind != "f" or not values.size:
        return None
    return float(values.min()), float(values.max())


def _channels_last(array: _Array, channels: int) -> np.ndarray:
    """[h, w, c] of [h, w], [h, w, c], [c, h, w] or one of these as a batch of one."""
    values = array.values[0] if array.values.ndim == 4 and len(array.values) == 1 else array.values
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim != 3:
        raise BadImage(f"an array of shape {list(values.shape)}, expected [height, width, channels]")
    known = {1, 3, channels} if channels in (1, 3) else {channels}
    first, last = values.shape[0] in known, values.shape[-1] in known
    return np.moveaxis(values, 0, -1) if first and (array.tensor or not last) else values
