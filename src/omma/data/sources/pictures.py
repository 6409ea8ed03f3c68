"""Pictures that a program holds (paths, bytes, arrays, tensors, PIL images, data sets) as a collection."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omma.core.errors import line
from omma.core.protocols import BadImage, Images
from omma.data.sources.decode import as_channels, as_values, decode
from omma.data.sources.decode_pillow import from_pillow
from omma.data.sources.readers import Files

Picture = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | np.ndarray | Tensor | Image.Image
)
Pictures = Picture | Images | Iterable[Any]  # an array or tensor of four dimensions is a batch

SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Tensor, Image.Image)
COLUMNS = ("image", "img", "pixel_values", "picture", "jpg", "jpeg", "png")  # of rows that are dictionaries
SAMPLE = 32  # pictures read to learn the number of channels
OVERSHOOT = 0.25  # by which floats leave [0, 1] after a bicubic resize and still count as within it


class _Array(NamedTuple):
    """An array or tensor, and the lowest and highest value of the batch that it is from."""

    values: np.ndarray
    tensor: bool
    extremes: tuple[float, float] | None


class PictureList:
    """A sequence of pictures as `Images`; nothing is decoded until `read`.

    white: the value of white in the units that are wanted, to which floats in [0, 1] are scaled; None: they
    stay. start: number of the first in the user's own list. names: of the pictures, where they have any.
    """

    splits: np.ndarray | None = None

    def __init__(
        self,
        pictures: Sequence[Any],
        channels: int,
        white: float | None = 255.0,
        *,
        start: int = 0,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        names: Sequence[str] | None = None,
    ) -> None:
        self.pictures, self.channels, self.white, self.start = pictures, channels, white, start
        self.labels, self.classes, self.names = labels, classes, names
        self.ranges = {"float32": (-np.inf, np.inf)}  # floats are in the units that are wanted

    def __len__(self) -> int:
        return len(self.pictures)

    def path(self, i: int) -> str:
        if self.names is not None:
            return self.names[int(i)]
        picture = self.pictures[int(i)] if isinstance(self.pictures, list) else None
        return (
            str(picture) if isinstance(picture, str | os.PathLike) else f"image {self.start + i} of the list"
        )

    def read(self, i: int, at_least: int | None = None) -> np.ndarray:
        picture = picture_of(self.pictures[int(i)])
        if isinstance(picture, np.ndarray | Tensor):
            picture = in_memory(picture)
        if isinstance(picture, _Array):
            extremes, values = picture.extremes, as_values(_channels_last(picture, self.channels))
        else:
            values = _opened(picture, self.channels, at_least)
            extremes = _extremes(values)
        return self._raw(as_channels(values, self.channels), extremes)

    def _raw(self, values: np.ndarray, extremes: tuple[float, float] | None) -> np.ndarray:
        """Values in the units that are wanted; floats in [0, 1] are scaled to those of its type of images."""
        if extremes is None or self.white is None:
            return values
        low, high = extremes
        if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
            return values.astype(np.float32) * np.float32(self.white)
        if low < -OVERSHOOT and high < 16:
            raise BadImage(
                f"values from {low:.2g} to {high:.2g}: images that are normalised already go to model(images)"
            )
        return values

    def subset(self, indices: np.ndarray) -> "PictureList":
        indices = np.flatnonzero(indices) if np.asarray(indices).dtype == bool else np.asarray(indices)
        rows = [int(i) for i in indices]
        return PictureList(
            _Rows(self.pictures, rows),
            self.channels,
            self.white,
            labels=None if self.labels is None else self.labels[rows],
            classes=self.classes,
            names=[self.path(i) for i in rows],
        )


class _Rows(Sequence[Any]):
    """Some items of something that has `len` and `[i]`, in this order."""

    def __init__(self, items: Any, rows: Sequence[int] | range) -> None:
        self.items, self.rows = items, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        return self.items[self.rows[i]]


# ---------------------------------------------------------------- what programs hold
def picture_of(item: Any) -> Any:
    """The picture in a row of a data set: of (picture, label) or {"image": picture, ...}."""
    if isinstance(item, Mapping):
        for name in COLUMNS:
            if item.get(name) is not None:
                return picture_of(item[name])
        if item.get("bytes") is not None or item.get("path") is not None:  # an image that is not decoded yet
            return item["path"] if item.get("bytes") is None else item["bytes"]
        raise BadImage(f"a row with the columns {', '.join(map(str, item))}: none of them is named image")
    if isinstance(item, tuple) and item and not isinstance(item, _Array):
        return item[0]
    return item


def pictures(source: Pictures) -> Iterator[Any]:
    """The single pictures of one, a batch, a list, a generator, a loader or a data set."""
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        raise ValueError(
            f"{os.fspath(source)} is a folder: omma.embed writes a table of the vectors of its images"
        )
    if isinstance(source, np.ndarray | Tensor) and source.ndim == 4:
        yield from _batch(source)
        return
    if isinstance(source, SINGLE) or hasattr(source, "read"):
        yield source
        return
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if isinstance(source, Mapping) or not (isinstance(source, Iterable) or indexed):
        raise ValueError(f"images are expected, one or a list of them, not {type(source).__name__}")
    items: Any = source
    if indexed and not isinstance(source, Iterable):
        items = (items[i] for i in range(len(items)))  # a data set ends where its length says
    for item in items:
        batch = item
        with contextlib.suppress(BadImage):  # `read` will say what is wrong with a row
            batch = picture_of(tuple(item) if isinstance(item, list) else item)
        if isinstance(batch, np.ndarray | Tensor) and batch.ndim == 4 and len(batch) != 1:
            yield from _batch(batch)  # of a loader, which may give [images, labels]
        else:
            yield item


def _batch(values: np.ndarray | Tensor) -> Iterator[_Array]:
    whole = in_memory(values)
    return (whole._replace(values=each) for each in whole.values)


def annotations_of(source: Any) -> tuple[np.ndarray | None, tuple[str, ...], list[str] | None]:
    """Labels, classes and names of a data set's pictures, where it holds them apart."""
    if hasattr(source, "dataset") and hasattr(source, "indices"):  # torch.utils.data.Subset
        labels, classes, names = annotations_of(source.dataset)
        rows = np.asarray(source.indices, np.int64)
        return (
            None if labels is None else labels[rows],
            classes,
            None if names is None else [names[i] for i in rows],
        )
    named: list[tuple[str, Any]] = []
    if isinstance(features := getattr(source, "features", None), Mapping):
        named = [(column, f.names) for column, f in features.items() if getattr(f, "names", None)]
    if len(named) == 1:
        column, classes = named[0]
        return np.asarray(source[column], np.int64), tuple(map(str, classes)), None
    labels, classes, names = getattr(source, "targets", None), getattr(source, "classes", None), None
    if (samples := getattr(source, "samples", None)) and isinstance(samples[0][0], str):  # ImageFolder
        names = [str(path) for path, *_ in samples]
    if labels is None or len(labels) != len(source) or np.ndim(labels) != 1:
        return None, (), names
    numbers = np.asarray(labels)
    if numbers.dtype.kind not in "iu" or numbers.min() < -1:
        return None, (), names
    count = int(numbers.max()) + 1
    classes = classes if classes is not None and len(classes) >= count else range(count)
    return numbers.astype(np.int64), tuple(map(str, classes)), names


def channels_of(items: Sequence[Any]) -> int:
    """Channels of a sample: 3 where grey and RGB mix, else the most frequent number."""
    counts: Counter[int] = Counter()
    reason = ""
    for i in np.unique(np.linspace(0, len(items) - 1, min(len(items), SAMPLE)).astype(int)):
        try:
            picture = picture_of(items[int(i)])
            if isinstance(picture, np.ndarray | Tensor):
                picture = in_memory(picture)
            if isinstance(picture, _Array):
                counts[_channels_last(picture, 3).shape[-1]] += 1
            else:
                counts[_opened(picture, None, 1).shape[-1]] += 1
        except BadImage as error:
            reason = str(error)
    if not counts:
        raise ValueError(f"none of the pictures can be read: {reason}")
    return 3 if set(counts) == {1, 3} else counts.most_common(1)[0][0]


# ---------------------------------------------------------------- one picture
def _opened(picture: Any, channels: int | None, at_least: int | None) -> np.ndarray:
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
    return decode(data, channels=channels, at_least=at_least)


def _content(path: str | bytes) -> bytes:
    try:
        return Files("").content(os.fsdecode(path), None)
    except ValueError as error:
        raise error if isinstance(error, BadImage) else BadImage(line(error)) from error  # NUL in the name


def in_memory(values: np.ndarray | Tensor) -> _Array:
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
