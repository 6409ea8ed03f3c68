"""What a program holds (pictures, or a data set of PyTorch or Hugging Face) as an indexed collection."""

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from omma.core.errors import exhausted, line
from omma.core.protocols import BadImage, Images
from omma.core.words import count
from omma.data.sources import labels as labelling
from omma.data.sources import list_rows, pictures
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.labels import Annotations
from omma.data.sources.pictures import SINGLE, PictureList
from omma.data.sources.values import value_ranges

SAMPLE = 32  # pictures read to learn the range of their values
HASHED = 256  # pictures whose values identify a data set
LABELLED = 20_000  # items up to which a data set is read for labels that only its items hold
_BAD = "its item cannot be read"


class Items(Sequence[Any]):
    """The pictures of a sequence or a data set; an error that it raises is BadImage."""

    def __init__(self, source: Any, column: str | None = None) -> None:
        self.source, self.column = source, column

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: Any) -> Any:
        item = item_of(self.source, int(i))
        if self.column is not None:
            item = item[self.column]
        return pictures.picture_of(tuple(item) if isinstance(item, list) and item else item)


def item_of(source: Any, i: int) -> Any:
    """Item i; BadImage for whatever error its own code raises."""
    try:
        return source[i]
    except BadImage:
        raise
    except Exception as error:
        if exhausted(error):
            raise
        raise BadImage(f"{_BAD} ({type(error).__name__}: {line(error)})") from error


@dataclass
class Held:
    """A store of pictures that a program holds; `where` is [item]. Threads take turns at its items."""

    images: Images
    known: str  # a text that identifies them; "" if they are hashed
    _locks: dict[int, Any] = field(default_factory=dict, repr=False)
    _stamp: str = ""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_locks": {}}

    def load(
        self, path: str, where: np.ndarray | None, channels: int | None, at_least: int | None
    ) -> np.ndarray:
        assert where is not None
        with self._locks.setdefault(os.getpid(), threading.Lock()):  # a forked process has its own
            return self.images.read(int(where[0]), at_least)

    def stamp(self, paths: list[str]) -> str:
        if not self._stamp:
            self._stamp = self.known or _hash(self.images)
        return self._stamp


def _hash(images: Images) -> str:
    """A hash of a sample of the images."""
    digest = hashlib.blake2b(digest_size=16)
    for i in _spread(len(images), HASHED):
        digest.update(_content(images, i))
    return digest.hexdigest()


def _content(images: Images, i: int) -> bytes:
    try:
        values = images.read(i)
    except BadImage:
        return b"bad"
    return f"{values.shape} {values.dtype}".encode() + np.ascontiguousarray(values).tobytes()


def varies(images: Images) -> bool:
    """Whether the first items are others when they are read again, as with random transforms."""
    return any(len({_content(images, i) for _ in range(3)}) > 1 for i in range(min(len(images), 4)))


def _spread(n: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int)).tolist()


# ---------------------------------------------------------------- open
def batch(source: Any) -> np.ndarray | None:
    """The values of an array or tensor of several images; None for anything else, and for one picture."""
    if not isinstance(source, np.ndarray | Tensor) or source.ndim not in (3, 4):
        return None
    if source.ndim == 3 and (source.shape[-1] in (1, 3, 4) or source.shape[0] in (1, 3, 4)):
        return None
    values = pictures.in_memory(source)
    if source.ndim == 4 and values.tensor and source.shape[1] in (1, 3):
        return np.moveaxis(values.values, 1, -1)
    return values.values


def collected(source: Any) -> IndexedImages:
    """Pictures or a data set as a collection, with the labels and columns that it keeps.

    Raises ValueError in one line for anything else.
    """
    name = type(source).__name__
    if isinstance(source, Images):
        return _indexed(source, Annotations(), None, name, "")
    if isinstance(source, SINGLE) or hasattr(source, "read"):
        source = [source]
    if isinstance(source, Mapping):
        parts = f": give one of its parts, such as images[{next(iter(source))!r}]" if len(source) else ""
        raise ValueError(f"{name}: a dictionary is no collection of images{parts}")
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(
            f"{name}: images are a path, an array, a list of pictures, or a data set with a length"
        )
    if not len(source):
        raise ValueError(f"{name}: no images in it")
    annotations, names, column = _annotations(source)
    items = Items(source, column)
    images = PictureList(items, pictures.channels_of(items), white=None, names=names)
    return _indexed(images, annotations, names, name, str(getattr(source, "_fingerprint", "") or ""))


def _indexed(
    images: Any, annotations: Annotations, names: Sequence[str] | None, source: str, known: str
) -> IndexedImages:
    n = len(images)
    readable = []
    for i in _spread(n, SAMPLE):
        try:
            readable.append(images.read(i, 1))
        except BadImage:
            continue
    notes = annotations.notes
    if varies(images):
        known = f"{n} items that vary"  # nothing else is the same the next time
        notes += (
            "the data set gives other values each time an item is read: leave its random transforms out, "
            "since omma cuts and colours views itself",
        )
    return IndexedImages(
        Held(images, known),
        pa.array(names or [f"{source}[{i}]" for i in range(n)], pa.large_string()),
        channels=images.channels,
        where=np.arange(n)[:, None],
        labels=annotations.labels,
        label_sets=annotations.label_sets,
        classes=annotations.classes,
        splits=annotations.splits,
        text=annotations.text,
        columns=annotations.columns,
        notes=notes,
        source=source,
        ranges=value_ranges(readable),
    )


# ---------------------------------------------------------------- labels
def _annotations(source: Any) -> tuple[Annotations, list[str] | None, str | None]:
    """Labels and columns, names of the pictures, and the column that holds them (Hugging Face)."""
    features = getattr(source, "features", None)
    if isinstance(features, Mapping) and hasattr(features, "to_dict") and hasattr(source, "with_format"):
        kinds = {column: type(feature).__name__ for column, feature in features.items()}
        found = [column for column, kind in kinds.items() if kind == "Image"]
        column = next((each for each in list_rows.NAMES if each in found), found[0] if found else None)
        others = source.remove_columns([each for each, kind in kinds.items() if kind in ("Image", "Audio")])
        if not others.column_names:
            return Annotations(), None, column
        table = others.with_format("arrow")[:].replace_schema_metadata(None)
        return list_rows.from_features(table, features.to_dict()), None, column
    labels, classes, names = pictures.annotations_of(source)
    if labels is not None:
        return Annotations(labels=labels, classes=classes), names, None
    return _from_items(source), names, None


def _from_items(source: Any) -> Annotations:
    """The labels in items (picture, label), where labels are numbers or texts."""
    try:
        first = item_of(source, 0)
    except BadImage:
        return Annotations()
    if _label(first) is None:
        return Annotations()
    tensors = getattr(source, "tensors", ())  # of a TensorDataset
    if len(tensors) > 1:
        return labelling.encode(tensors[1].tolist())
    if len(source) > LABELLED:
        return Annotations(
            notes=(
                f"labels in items are read of up to {LABELLED:,} of them, and these are {len(source):,}: "
                "give the data set an attribute targets (a list of numbers), and classes",
            )
        )
    found = []
    for i in range(len(source)):
        try:
            found.append(_label(item_of(source, i)))
        except BadImage:
            found.append(None)
    read = labelling.encode(found)
    classes = getattr(source, "classes", None)
    whole = all(isinstance(label, int) for label in found if label is not None)
    if classes is not None and whole and read.labels is not None and read.labels.max() < len(classes):
        numbers = np.array([-1 if label is None else label for label in found], np.int64)
        if 0 <= numbers.max() < len(classes):
            return Annotations(labels=np.maximum(numbers, -1), classes=tuple(map(str, classes)))
    missing = sum(label is None for label in found)
    notes = (f"without a label: {count(missing, 'item')}",) if missing else ()
    return Annotations(labels=read.labels, classes=read.classes, notes=(*read.notes, *notes))


def _label(item: Any) -> int | float | str | None:
    """The label of an item (picture, label)."""
    if not isinstance(item, tuple | list) or len(item) < 2:
        return None
    label = item[1]
    if isinstance(label, Tensor | np.ndarray | np.generic) and np.ndim(label) == 0:
        label = label.item()
    return label if isinstance(label, int | float | str) and not isinstance(label, bool) else None
