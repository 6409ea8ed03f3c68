"""Decoded images in memory that all worker processes share: each is decoded once, while there is room."""

import contextlib
import mmap
import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Num

from omma.data.batches.in_memory import MAX_BYTES, memory_bytes

_TYPES = tuple(map(np.dtype, (np.uint8, np.uint16, np.float32)))
_ALIGNED = 64  # bytes; unaligned values are read slowly
LEAST = 4096  # bytes of room an image, or so small a share would fit that none is remembered
_NEXT = 0  # in the first row of the table: where the next image is written


def room() -> int:
    """Bytes that may be remembered: an eighth of the machine's memory, at most 2 GiB."""
    return min(MAX_BYTES, memory_bytes() // 8)


class Remembered:
    """Calls `read` for one of `count` images, and remembers what it returns, up to `limit` bytes in all.

    Forked processes share one memory, which is taken page by page as it fills. Where the system has no locks
    or no such memory, and pickled, for processes that are not forked, it remembers nothing. What is returned
    may be shared: it must not be written to.
    """

    def __init__(self, read: Callable[[int], Num[np.ndarray, "h w c"]], count: int, limit: int) -> None:
        self.read, self.limit = read, 0
        if limit < count * LEAST:
            return
        with contextlib.suppress(OSError):
            self._lock: Any = multiprocessing.get_context("fork").Lock()
            self._values = mmap.mmap(-1, limit)
            # a row for each image after the first: is it there?, where, height, width, channels, its type
            self._table = np.frombuffer(mmap.mmap(-1, (count + 1) * 6 * 8), np.int64).reshape(-1, 6)
            self.limit = limit

    def __getstate__(self) -> dict[str, Any]:
        return {"read": self.read, "limit": 0}

    def __call__(self, i: int) -> Num[np.ndarray, "h w c"]:
        if not self.limit:
            return self.read(i)
        with self._lock:
            there, start, height, width, channels, kind = self._table[i + 1].tolist()
        if there:
            values = np.frombuffer(self._values, _TYPES[kind], height * width * channels, start)
            return values.reshape(height, width, channels)
        image = self.read(i)
        if image.dtype in _TYPES:
            self._keep(i, image)
        return image

    def _keep(self, i: int, image: Num[np.ndarray, "h w c"]) -> None:
        with self._lock:
            start = int(self._table[0, _NEXT])
            end = start + image.nbytes
            if end > self.limit:
                return
            self._table[0, _NEXT] = -(-end // _ALIGNED) * _ALIGNED
        np.frombuffer(self._values, image.dtype, image.size, start)[:] = image.ravel()
        with self._lock:  # what was written is seen by whoever takes the lock next
            self._table[i + 1] = (1, start, *image.shape, _TYPES.index(image.dtype))
