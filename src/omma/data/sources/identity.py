"""Which images are the same, by content: wherever they lie, and however their source is named.

A copy, a subfolder, a table or an archive of the same files holds the same images. Files that were encoded
again, and the same pixels in another form, are not recognised.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt64

from omma.core import files
from omma.core.protocols import BadImage
from omma.data.sources.collection import IndexedImages
from omma.data.sources.readers import Files

FILE = "trained_on.npy"  # of a run folder
EDGE = 1 << 16  # bytes at either end of a file that count
MOST = 20_000  # images whose keys are kept; of more, a sample


def content_key(content: bytes) -> int:
    """64 bits of a file's size and its first and last 64 KiB; never 0."""
    return _key(len(content), content[:EDGE], content[-EDGE:])


def _key(size: int, first: bytes, last: bytes) -> int:
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=8)
    digest.update(first)
    digest.update(last)
    return int.from_bytes(digest.digest(), "little") or 1


def _file_key(path: str) -> int:
    """`content_key` of a file, of which only both ends are read."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(EDGE)
        file.seek(max(0, size - EDGE))
        return _key(size, first, file.read(EDGE))


def keys(images: IndexedImages) -> UInt64[np.ndarray, "n"]:
    """The key of each image's content; 0 where it cannot be read, or only over a network."""
    store = images._store

    def key(i: int) -> int:
        path = images.path(i)
        try:
            if "://" in path or images.blocks is not None:
                return 0
            if isinstance(store, Files):
                return _file_key(os.path.join(store.root, path))
            return content_key(images.content(i) if images.encoded else _bytes(images.read(i)))
        except (BadImage, OSError):
            return 0

    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        return np.fromiter(pool.map(key, range(len(images))), np.uint64, len(images))


def _bytes(pixels: np.ndarray) -> bytes:
    return f"{pixels.dtype.str} {pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes()


@dataclass(frozen=True)
class TrainedOn:
    """The images that a run was trained on."""

    keys: UInt64[np.ndarray, "k"]  # sorted
    images: int  # of which `keys` are all, or a random sample

    @property
    def share(self) -> float:
        """Of the images, those whose keys are known."""
        return len(self.keys) / max(self.images, 1)

    def among(self, others: UInt64[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        """Which of these keys are among those known."""
        return np.isin(others, self.keys) & (others != 0)


def write(folder: Path, images: IndexedImages, seed: int = 0) -> None:
    """Keep in a run folder which images it was trained on: their number, then sorted keys."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:MOST])
    known = keys(images.subset(rows))
    numbers = np.concatenate([np.array([len(images)], np.uint64), np.sort(known[known != 0])])
    with files.atomic_write(folder / FILE) as partial, open(partial, "wb") as stream:
        np.save(stream, numbers)


def read(model: Path) -> TrainedOn | None:
    """What `write` kept beside a model, its folder or file; None if nothing is known, or it is damaged."""
    folder = model if model.is_dir() else model.parent
    try:
        numbers = np.load(folder / FILE, allow_pickle=False).astype(np.uint64)
        return TrainedOn(numbers[1:], int(numbers[0])) if len(numbers) > 1 else None
    except (OSError, EOFError, ValueError, TypeError):
        return None
