"""Stores, which read an image's pixels: files, a .zip or .tar read in place, or an array."""

import hashlib
import os
import re
import stat
import struct
import threading
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from omma.core.errors import line
from omma.core.files import SharedFile
from omma.core.protocols import BadImage, Inaccessible
from omma.data.sources import idx, remote
from omma.data.sources.array_labels import find_labels
from omma.data.sources.columns import one_hot
from omma.data.sources.decode import PIXELS, as_values, decode
from omma.data.sources.limits import LARGEST, check_npz
from omma.data.sources.names import inaccessible

FEW = 20_000  # files up to which omma 0.1 looked at the size and time of each


class Store(Protocol):
    """Reads images of a collection; pickles as addresses, never as open files."""

    def load(
        self, path: str, where: np.ndarray | None, channels: int | None, at_least: int | None
    ) -> np.ndarray:
        """The image at `path`, or at `where` (int64, as the store defines it), as `decode` returns it."""
        ...

    def stamp(self, paths: list[str]) -> str:
        """A text that changes when sizes or modification times do."""
        ...


def _file_stamp(file: str) -> str:
    try:
        stat = os.stat(file)
    except OSError:
        return "?"
    return f"{stat.st_size} {stat.st_mtime_ns}"


class EncodedStore(ABC):
    """A store of encoded image files."""

    @abstractmethod
    def content(self, path: str, where: np.ndarray | None) -> bytes:
        """The file's bytes, which `load` decodes. Raises BadImage."""

    def load(
        self, path: str, where: np.ndarray | None, channels: int | None, at_least: int | None
    ) -> np.ndarray:
        return decode(self.content(path, where), channels, at_least)


# ---------------------------------------------------------------- files
@dataclass(frozen=True)
class Files(EncodedStore):
    """Paths relative to `root`, absolute, or where `remote` fsspec addresses such as s3://bucket/key."""

    root: str
    remote: bool = False

    def content(self, path: str, where: np.ndarray | None) -> bytes:
        if remote.is_remote(path):
            if not self.remote:
                raise Inaccessible(remote.REFUSED)
            return remote.fetch(path, LARGEST)
        file_path = os.path.join(self.root, remote.local_path(path))
        try:
            with open(file_path, "rb", opener=_without_waiting) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise BadImage("not a regular file")
                if status.st_size > LARGEST:
                    raise BadImage("over 1 GB")
                return file.read()
        except OSError as error:
            raise inaccessible(error) from None
        except ValueError as error:  # BadImage, or a name with a zero byte
            raise BadImage(line(error)) from None

    def stamp(self, paths: list[str]) -> str:
        return _file_stamp(self.root)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer is opened too, rather than waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


# ---------------------------------------------------------------- archives
@dataclass
class Archive(EncodedStore):
    """A .zip or uncompressed .tar, opened once per process; threads read it at the same time.

    `where` is [offset, stored bytes, inflated bytes, method, checksum]. A zip's offset is that of the
    member's local header, method 0 (stored) or 8 (deflated); a tar's is that of the data, with method -1.
    """

    file: str
    _opened: SharedFile | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "_opened": None}

    def content(self, path: str, where: np.ndarray | None) -> bytes:
        assert where is not None
        return self.bytes(where)

    def _member(self, opened: SharedFile, where: np.ndarray, limit: int | None) -> bytes:
        offset, stored, size, method, checksum = (int(number) for number in where)
        if method >= 0:
            header = opened.read(offset, 30)
            if header[:4] != b"PK\3\4" or len(header) < 30:
                raise BadImage("damaged archive")
            offset += 30 + sum(struct.unpack_from("<HH", header, 26))  # after name and extra field
        length = size if limit is None else min(limit, size)
        try:
            if method == 8:
                # never inflate more than the directory of the archive promised
                inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                data = inflate.decompress(opened.read(offset, stored), max(length, 1))
            else:
                data = opened.read(offset, length)
        except zlib.error as error:
            raise BadImage(f"damaged archive: {error}") from None
        if len(data) < length or (limit is None and method >= 0 and zlib.crc32(data) != checksum):
            raise BadImage("damaged archive: wrong length or checksum")
        return data

    def bytes(self, where: np.ndarray, limit: int | None = None) -> bytes:
        """The member at `where`, or its first `limit` bytes, whose checksum is not verified."""
        try:
            if self._opened is None:  # two threads may both open it; one is then dropped
                self._opened = SharedFile(self.file)
            return self._member(self._opened, where, limit)
        except OSError as error:
            raise inaccessible(error) from None

    def stamp(self, paths: list[str]) -> str:
        return _file_stamp(self.file)


# ---------------------------------------------------------------- arrays
@dataclass
class Arrays:
    """An array [n, h, w, c], in memory or loaded once per process from an array file; `where` is [row]."""

    file: str | None = None
    values: np.ndarray | None = field(default=None, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "values": None if self.file else self.values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def load(
        self, path: str, where: np.ndarray | None, channels: int | None, at_least: int | None
    ) -> np.ndarray:
        assert where is not None
        with self._lock:
            if self.values is None:
                assert self.file is not None
                self.values = read_arrays(self.file).values
        if isinstance(self.values, np.memmap):
            _refuse_cut(self.values)
        return as_values(np.array(self.values[int(where[0])]))  # a copy: callers may write into it

    def stamp(self, paths: list[str]) -> str:
        if self.file:
            return _file_stamp(self.file)
        assert self.values is not None
        return hashlib.blake2b(np.ascontiguousarray(self.values).data, digest_size=16).hexdigest()


def _refuse_cut(values: np.memmap) -> None:
    """Raise Inaccessible if the file became shorter: reading what it lacks ends the process with SIGBUS."""
    try:
        size = os.path.getsize(str(values.filename))
    except OSError as error:
        raise inaccessible(error) from None
    if size < values.offset + values.nbytes:
        raise Inaccessible("the file was cut while it was read")


def as_images(values: np.ndarray, name: str = "array") -> np.ndarray:
    """View an array as [n, h, w, c].

    Four axes: [n, h, w, c] or [n, c, h, w], channels being the smaller of the last and the second axis (the
    last if equal). Three axes: one image [h, w, c] or [c, h, w] if that axis is at most 32 and the two others
    at least 32, otherwise n grey images [n, h, w].
    """
    if values.dtype.kind not in "buif":
        raise ValueError(f"{name}: values of type {values.dtype}; store numbers")
    if values.ndim == 4:
        images = np.moveaxis(values, 1, -1) if values.shape[1] < values.shape[-1] else values
    elif values.ndim == 3:
        first, middle, last = values.shape
        if last <= 32 <= min(first, middle):
            images = values[None]
        elif first <= 32 <= min(middle, last):
            images = np.moveaxis(values, 0, -1)[None]
        else:
            images = values[..., None]
    else:
        shape = list(values.shape)
        raise ValueError(
            f"{name}: shape {shape} is not a set of images; store [n, h, w, channels] or [n, h, w]"
        )
    _, height, width, channels = images.shape
    if not height * width * channels:
        raise ValueError(f"{name}: shape {list(values.shape)} has no pixels; save it again")
    if height * width > PIXELS:
        raise ValueError(
            f"{name}: images of over {PIXELS // 10**6} million pixels; cut them into smaller ones"
        )
    return images


_TEST = re.compile(r"(^|_)(test|val|valid)(_|$)", re.IGNORECASE)
_TRAIN = re.compile(r"(^|_)train(_|$)", re.IGNORECASE)


# what zipfile, gzip and numpy raise for damaged files
_DAMAGE = (
    OSError, EOFError, RuntimeError, OverflowError, TypeError, KeyError, IndexError, SyntaxError,
    tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


class ArrayFile(NamedTuple):
    """Images [n, h, w, c] of a file, with labels [n] (or zeros and ones [n, k]) and splits [n] or None."""

    values: np.ndarray
    labels: np.ndarray | None = None
    splits: np.ndarray | None = None
    notes: tuple[str, ...] = ()  # why there are no labels


def read_arrays(file: str) -> ArrayFile:
    """The images of an .npz, .npy or IDX file.

    In an .npz, the names of arrays say which are labels (`find_labels`). Names that say train and test
    (x_train, test_images) give the split; otherwise the largest array with three or four axes is taken.
    """
    name = Path(file).name
    try:
        if file.lower().endswith(".npz"):
            check_npz(file, name)
            return _from_npz(*_load_npz(file), name)
        if file.lower().endswith(".npy"):
            return ArrayFile(as_images(_load_npy(file, name), name))
        return ArrayFile(as_images(idx.read(file), name), idx.labels(file))
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's word, not about the bytes
            raise
        raise ValueError(f"{name}: cannot be read ({line(error)}); save it again") from None


def _load_npy(file: str, name: str) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except ValueError as error:
        raise ValueError(f"{name}: cannot be read ({line(error)}); save it again") from None


def _load_npz(file: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays, and the names of those of Python objects, which are never unpickled."""
    arrays, objects = {}, []
    with zipfile.ZipFile(file), np.load(file) as archive:  # zipfile raises for a file that is not an archive
        for key in archive.files:
            try:
                if isinstance(
                    value := archive[key], np.ndarray
                ):  # otherwise bytes of a member that is no array
                    arrays[key] = value
            except ValueError as error:  # damaged, and no array, or one of objects
                objects += [key] if "pickle" in str(error) else []
    return arrays, objects


def _from_npz(arrays: dict[str, np.ndarray], objects: list[str], name: str) -> ArrayFile:
    pictures = {key: value for key, value in arrays.items() if value.ndim in (3, 4)}
    if not pictures:
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in arrays.items())
        raise ValueError(f"{name}: no array of images ({shapes or 'empty'}); store [n, h, w, channels]")
    train = [key for key in pictures if _TRAIN.search(key)]
    test = [key for key in pictures if _TEST.search(key)]
    if not (train and test):
        train, test = [max(pictures, key=lambda key: pictures[key].size)], []
    values, labels, splits, notes = [], [], [], []
    for key in train + test:
        images = as_images(pictures[key], f"{name}[{key}]")
        side = next((word.group(2) for word in [_TEST.search(key)] if word), "train" if test else None)
        values.append(images)
        column, why = find_labels(arrays, objects, key, len(images), side)
        labels.append(column)
        notes += [why] if why else []
        splits.append(np.full(len(images), "test" if key in test else "train"))
    if len({images.shape[1:] for images in values}) > 1:
        raise ValueError(f"{name}: train and test images differ in shape; store them in one shape")
    return ArrayFile(
        np.concatenate(values) if len(values) > 1 else values[0],
        _joined(labels, [len(images) for images in values]),
        np.concatenate(splits) if test else None,
        tuple(notes),
    )


def _joined(labels: list[np.ndarray | None], counts: list[int]) -> np.ndarray | None:
    """The labels of all parts, None where a part has none (-1 among zeros and ones [n, k])."""
    if len(labels) == 1 or all(column is None for column in labels):
        return labels[0]
    shapes = {column.shape[1:] for column in labels if column is not None}
    if len(shapes) == 1 and shapes != {()}:
        rows = [
            np.full((n, *shape), -1, np.int8) if column is None else column.astype(np.int8)
            for column, n, shape in zip(labels, counts, [*shapes] * len(labels))
        ]
        return np.concatenate(rows)
    labels = [column if column is None or column.ndim == 1 else one_hot(column) for column in labels]
    return np.concatenate(
        [np.full(n, None) if column is None else column.astype(object) for column, n in zip(labels, counts)]
    )
