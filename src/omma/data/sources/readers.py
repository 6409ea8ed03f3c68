"""Stores, which read an image's pixels: files, a .zip or .tar read in place, or an array."""

import gzip
import hashlib
import mmap
import os
import re
import struct
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np

from omma.core.protocols import BadImage
from omma.data.sources.decode import as_values, decode

LARGEST = 1 << 30  # bytes of one encoded image; a larger file is a decompression bomb or a video
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
    """Paths relative to `root`, absolute, or fsspec addresses such as s3://bucket/key."""

    root: str

    def content(self, path: str, where: np.ndarray | None) -> bytes:
        try:
            if "://" in path:
                with fsspec.open(path, "rb") as remote:
                    return remote.read()  # pyright: ignore[reportAttributeAccessIssue]
            with open(os.path.join(self.root, path), "rb") as file:
                if os.fstat(file.fileno()).st_size > LARGEST:
                    raise BadImage("over 1 GB")
                return file.read()
        except OSError as error:
            raise BadImage((error.strerror or type(error).__name__).lower()) from None

    def stamp(self, paths: list[str]) -> str:
        return _file_stamp(self.root)


# ---------------------------------------------------------------- archives
@dataclass
class Archive(EncodedStore):
    """A .zip or uncompressed .tar, mapped into memory once per process; reading needs no lock.

    `where` is [offset, stored bytes, inflated bytes, method, checksum]. A zip's offset is that of the
    member's local header, method 0 (stored) or 8 (deflated); a tar's is that of the data, with method -1.
    """

    file: str
    _map: mmap.mmap | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "_map": None}

    def content(self, path: str, where: np.ndarray | None) -> bytes:
        assert where is not None
        return self.bytes(where)

    def bytes(self, where: np.ndarray, limit: int | None = None) -> bytes:
        """The member at `where`, or its first `limit` bytes, whose checksum is not verified."""
        if self._map is None:  # two threads may both map it; one map is then dropped
            try:
                with open(self.file, "rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise BadImage(f"the archive cannot be read: {error}") from None
        offset, stored, size, method, checksum = (int(number) for number in where)
        if method >= 0:
            header = self._map[offset : offset + 30]
            if header[:4] != b"PK\3\4" or len(header) < 30:
                raise BadImage("damaged archive")
            offset += 30 + sum(struct.unpack_from("<HH", header, 26))  # after name and extra field
        length = size if limit is None else min(limit, size)
        try:
            if method == 8:
                # never inflate more than the directory of the archive promised
                inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                data = inflate.decompress(self._map[offset : offset + stored], max(length, 1))
            else:
                data = self._map[offset : offset + length]
        except zlib.error as error:
            raise BadImage(f"damaged archive: {error}") from None
        if len(data) < length or (limit is None and method >= 0 and zlib.crc32(data) != checksum):
            raise BadImage("damaged archive: wrong length or checksum")
        return data

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
                self.values = read_arrays(self.file)[0]
        return as_values(np.array(self.values[int(where[0])]))  # a copy: callers may write into it

    def stamp(self, paths: list[str]) -> str:
        if self.file:
            return _file_stamp(self.file)
        assert self.values is not None
        return hashlib.blake2b(np.ascontiguousarray(self.values).data, digest_size=16).hexdigest()


def as_images(values: np.ndarray, name: str = "array") -> np.ndarray:
    """View an array as [n, h, w, c].

    Four axes: [n, h, w, c] or [n, c, h, w], channels being the smaller of the last and the second axis (the
    last if equal). Three axes: one image [h, w, c] or [c, h, w] if that axis is at most 32 and the two others
    at least 32, otherwise n grey images [n, h, w].
    """
    if values.dtype.kind not in "buif":
        raise ValueError(f"{name}: values of type {values.dtype}; store numbers")
    if values.ndim == 4:
        return np.moveaxis(values, 1, -1) if values.shape[1] < values.shape[-1] else values
    if values.ndim == 3:
        first, middle, last = values.shape
        if last <= 32 <= min(first, middle):
            return values[None]
        if first <= 32 <= min(middle, last):
            return np.moveaxis(values, 0, -1)[None]
        return values[..., None]
    raise ValueError(
        f"{name}: shape {list(values.shape)} is not a set of images; store [n, h, w, channels] or [n, h, w]"
    )


_TEST = re.compile(r"(^|_)(test|val|valid)(_|$)", re.IGNORECASE)
_TRAIN = re.compile(r"(^|_)train(_|$)", re.IGNORECASE)
_LABELS = re.compile(r"(^|_)(y|labels?|targets?)(_|$)", re.IGNORECASE)


def read_arrays(file: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Images [n, h, w, c] of an .npz, .npy or IDX file, with labels [n] and splits [n] or None.

    In an .npz, labels are a vector whose name says so (y, label, labels, target). Names that say train and
    test (x_train, test_images) give the split; otherwise the largest array with three or four axes is taken.
    """
    name = Path(file).name
    try:
        if file.lower().endswith(".npz"):
            return _from_npz(_load_npz(file), name)
        if file.lower().endswith(".npy"):
            return as_images(_load_npy(file, name), name), None, None
        return as_images(_idx(file), name), _idx_labels(file), None
    except (OSError, EOFError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{name}: cannot be read ({error}); save it again") from None


def _load_npy(file: str, name: str) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except ValueError as error:
        raise ValueError(f"{name}: cannot be read ({error}); save it again") from None


def _load_npz(file: str) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file), np.load(file) as archive:  # zipfile raises for a file that is not an archive
        return {key: value for key in archive.files if (value := _member(archive, key)) is not None}


def _member(archive: Any, key: str) -> np.ndarray | None:
    try:
        return archive[key]
    except ValueError:  # an array of Python objects, which is never unpickled, is ignored
        return None


def _from_npz(
    arrays: dict[str, np.ndarray], name: str
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    pictures = {key: value for key, value in arrays.items() if value.ndim in (3, 4)}
    if not pictures:
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in arrays.items())
        raise ValueError(f"{name}: no array of images ({shapes or 'empty'}); store [n, h, w, channels]")
    train = [key for key in pictures if _TRAIN.search(key)]
    test = [key for key in pictures if _TEST.search(key)]
    if not (train and test):
        train, test = [max(pictures, key=lambda key: pictures[key].size)], []
    values, labels, splits = [], [], []
    for key in train + test:
        images = as_images(pictures[key], f"{name}[{key}]")
        side = next((word.group(2) for word in [_TEST.search(key)] if word), "train" if test else None)
        values.append(images)
        labels.append(_matching_labels(arrays, len(images), side))
        splits.append(np.full(len(images), "test" if key in test else "train"))
    if len({images.shape[1:] for images in values}) > 1:
        raise ValueError(f"{name}: train and test images differ in shape; store them in one shape")
    labelled = all(column is not None for column in labels)
    return (
        np.concatenate(values) if len(values) > 1 else values[0],
        np.concatenate(labels) if labelled else None,
        np.concatenate(splits) if test else None,
    )


def _matching_labels(arrays: dict[str, np.ndarray], n: int, side: str | None) -> np.ndarray | None:
    for key, value in arrays.items():
        vector = value.dtype.kind in "iuUS" and value.ndim in (1, 2) and value.size == len(value) == n
        if vector and _LABELS.search(key) and (side is None or side.lower() in key.lower()):
            return value.ravel()
    return None


# ---------------------------------------------------------------- IDX
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def _idx(file: str) -> np.ndarray:
    with gzip.open(file) if file.endswith(".gz") else open(file, "rb") as stream:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES:
            raise ValueError(f"{Path(file).name}: not an IDX file; unpack it if it is another archive")
        shape = struct.unpack(f">{magic[3]}I", stream.read(4 * magic[3]))
        dtype = np.dtype(_IDX_TYPES[magic[2]])
        data = stream.read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    if len(data) < np.prod(shape, dtype=np.int64) * dtype.itemsize:
        raise ValueError(f"{Path(file).name}: truncated; fetch it again")
    return np.frombuffer(data, dtype).reshape(shape)


def _idx_labels(file: str) -> np.ndarray | None:
    """Labels from the file in the same folder, named as in MNIST; None without one."""
    folder, name = os.path.split(file)
    labels = os.path.join(folder, re.sub(r"images([-.])idx\d", r"labels\1idx1", name))
    return _idx(labels) if labels != file and os.path.exists(labels) else None
