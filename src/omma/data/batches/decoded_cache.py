"""Decoded, resized images in memory-mapped files (`--cache`): later epochs and runs decode nothing.

A cache is a folder of parts. A part begins with a table, int64 [images, 5]: offset of an image's values,
height, width, channels, bytes per value (1: uint8, 2: uint16, 4: float32). A bad image's row has 0 bytes per
value, and `height` bytes of text, the reason, stand in place of its values; its width is 1 if the image could
not be accessed, which is tried again when the cache is next opened for writing.
"""

import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Num

from omma.core import files
from omma.core.caches import cache_folder
from omma.core.device import cores
from omma.core.errors import line
from omma.core.protocols import BadImage, Inaccessible
from omma.core.words import count
from omma.data.pixels.resize import cut_into
from omma.data.sources.indexed import IndexedImages

FORMAT = 2  # of the parts; older versions' caches are not read after a change
PARTS = 128  # at most: every process that reads holds each of them open
SMALLEST = 512  # images a part, at the least
SAMPLE = 64  # images from which the size is estimated
TELL = 30.0  # seconds between two progress messages
_ALIGNED = 64  # bytes; unaligned values are read slowly
_TYPES = {1: np.uint8, 2: np.uint16, 4: np.float32}  # by bytes per value
_AT_ONCE = 64  # decoded images in memory while a part is written


def shrunk(image: Num[np.ndarray, "h w c"], side: int) -> Num[np.ndarray, "h2 w2 c"]:
    """Resized (bicubic, antialiased) so that the shorter side has `side` pixels; never enlarged."""
    h, w = image.shape[:2]
    if min(h, w) <= side:
        return image
    height, width = (side, round(w * side / h)) if h <= w else (round(h * side / w), side)
    out = np.empty((image.shape[2], height, width), np.uint8 if image.dtype == np.uint8 else np.float32)
    cut_into(out, image if image.dtype == np.uint8 else image.astype(np.float32), (0, 0, h, w), "bicubic")
    if image.dtype == np.uint16:
        out = out.round().clip(0, 65535).astype(np.uint16)
    return np.ascontiguousarray(out.transpose(1, 2, 0))


@dataclass
class Pixels:
    """The images of a cache, as a store; `where` is [row]. Each process maps a part when it first reads it.

    `load` returns a view of the file: writing into it changes what this process reads later, never the file.
    """

    folder: str
    count: int  # images in all
    part: int  # images a part
    decoded: ClassVar[bool] = True  # there are no files' bytes to read
    _maps: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "count": self.count, "part": self.part, "_maps": {}}

    def file(self, number: int) -> Path:
        """Part `number`."""
        return Path(self.folder) / f"part-{number:03}.pixels"

    def rows(self, number: int) -> range:
        """The images of part `number`."""
        return range(number * self.part, min((number + 1) * self.part, self.count))

    def whole(self, number: int) -> bool:
        """Is part `number` there, as long as its table says?"""
        try:
            size = self.file(number).stat().st_size
            table = np.fromfile(self.file(number), np.int64, len(self.rows(number)) * 5).reshape(-1, 5)
        except (OSError, ValueError):  # absent, or shorter than its table
            return False
        values = np.where(table[:, 4] == 0, table[:, 1], table[:, 1:].prod(axis=1))
        return len(table) == len(self.rows(number)) and int((table[:, 0] + values).max()) <= size

    def load(
        self, path: str, where: np.ndarray | None, channels: int | None, at_least: int | None
    ) -> np.ndarray:
        assert where is not None
        number, row = divmod(int(where[0]), self.part)
        data, table = self._maps.get(number) or self._map(number)
        start, height, width, depth, size = table[row].tolist()
        if size == 0:
            raise (Inaccessible if width else BadImage)(data[start : start + height].tobytes().decode())
        values = data[start : start + height * width * depth * size]
        return values.view(_TYPES[size]).reshape(height, width, depth)

    def _map(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            # writable copies of its pages, if ever: PyTorch warns of arrays that cannot be written
            data = np.asarray(np.memmap(self.file(number), np.uint8, "c"))
        except (OSError, ValueError) as error:  # absent, or empty
            raise ValueError(
                f"cache {self.file(number)}: {line(error)}; the same command writes it again"
            ) from None
        if not self.whole(number):
            raise ValueError(f"cache {self.file(number)} is damaged: the same command writes it again")
        table = data[: len(self.rows(number)) * 5 * 8].view(np.int64).reshape(-1, 5)
        self._maps[number] = data, table  # two threads may both map it; one map is then dropped
        return data, table

    def inaccessible(self, number: int) -> np.ndarray:
        """Which images of part `number` could not be accessed when it was written."""
        _, table = self._maps.get(number) or self._map(number)
        return (table[:, 4] == 0) & (table[:, 2] == 1)

    def forget(self, number: int) -> None:
        """Delete part `number`."""
        self._maps.pop(number, None)
        self.file(number).unlink(missing_ok=True)

    def stamp(self, paths: list[str]) -> str:
        return self.folder


@dataclass
class Cache:
    """Decoded images, `side` pixels along the shorter side, in files below `folder`.

    The folder's name has the images' fingerprint and the side, so that later runs find it. Each part is
    written atomically by one process; several processes share the work.
    """

    original: IndexedImages
    side: int
    folder: Path = field(default_factory=cache_folder)

    @cached_property
    def store(self) -> Pixels:
        n = len(self.original)
        name = f"pixels-{FORMAT}-{self.original.fingerprint}-{self.side}"
        return Pixels(str(self.folder / name), n, max(SMALLEST, math.ceil(n / PARTS)))

    @cached_property
    def images(self) -> IndexedImages:
        """The same collection, read from the cache, which must have been written."""
        return self.original.stored(self.store, np.arange(len(self.original))[:, None])

    @property
    def _parts(self) -> range:
        return range(math.ceil(self.store.count / self.store.part))

    def missing(self) -> list[int]:
        """Numbers of the parts that are not written yet."""
        return [number for number in self._parts if not self.store.whole(number)]

    def describe(self, size: int | None = None) -> str:
        """Size on disk (`size` bytes; None: of what is written), location, images and side, in one line."""
        size = size or sum(self.store.file(number).stat().st_size for number in self._parts)
        amount = f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
        return (
            f"{amount} at {self.store.folder} ({count(self.store.count, 'image')}, shorter side {self.side})"
        )

    def expected(self) -> tuple[int, float]:
        """Mean bytes per image and core seconds to prepare one, estimated from a few images."""
        spread = np.unique(np.linspace(0, self.store.count - 1, min(self.store.count, SAMPLE)).astype(int))
        before = time.monotonic()
        prepared = [self._prepared(row) for row in spread.tolist()]
        size = sum(0 if isinstance(image, BadImage) else image.nbytes for image in prepared) / len(prepared)
        return math.ceil(size) + _ALIGNED + 40, (time.monotonic() - before) / len(prepared)

    def write(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """Write what is missing; `tell` receives lines of text: size, location and time first, then progress.

        Raises ValueError before anything is written if the disk is too full.
        """
        self._drop_what_can_be_read_now()
        missing = self.missing()
        if not missing:
            return
        size, seconds = self.expected()
        images = sum(len(self.store.rows(number)) for number in missing)
        about = self.describe(size * self.store.count)
        try:
            Path(self.store.folder).mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.store.folder).free
            if (needed := size * images) * 1.05 > free:
                raise ValueError(
                    f"cache of about {about}: {needed / 1e9:.1f} GB to write and {free / 1e9:.1f} GB are free"
                    "; make room, set OMMA_CACHE to a folder on another disk, or do without --cache"
                )
            done = "" if images == self.store.count else f", {1 - images / self.store.count:.0%} of it there"
            tell(f"cache of about {about}{done}: writing it takes about {seconds * images / cores():,.0f} s")
            self._write_all(tell)
        except OSError as error:
            raise ValueError(
                f"cache {self.store.folder}: {line(error)}; make room or set OMMA_CACHE to another folder"
            ) from None

    def _drop_what_can_be_read_now(self) -> None:
        """Delete parts that lack an image which could not be accessed when they were written, and now can."""
        for number in self._parts:
            if self.store.whole(number):
                lost = np.flatnonzero(self.store.inaccessible(number))
                if len(lost) and not isinstance(self._prepared(self.store.rows(number)[lost[0]]), BadImage):
                    self.store.forget(number)

    def _write_all(self, tell: Callable[[str], None]) -> None:
        """First the parts that no other process is writing, then, after waiting, what those left undone."""
        last = time.monotonic()
        for wait in (False, True):
            for number in self.missing():
                file = self.store.file(number)
                try:
                    with FileLock(file.with_name(f".{file.name}.lock"), blocking=wait):
                        files.remove_leftovers(file)
                        if not self.store.whole(number):
                            self._write(number)
                except Timeout:
                    continue
                if time.monotonic() - last > TELL:
                    last = time.monotonic()
                    tell(f"cache: {1 - len(self.missing()) / len(self._parts):.0%} written")

    def _write(self, number: int) -> None:
        rows = self.store.rows(number)
        table = np.zeros((len(rows), 5), np.int64)
        with (
            files.atomic_write(self.store.file(number), durable=True) as partial,
            open(partial, "wb") as out,
            ThreadPoolExecutor(cores()) as pool,
        ):
            at = out.seek(_aligned(table.nbytes))
            for first in range(0, len(rows), _AT_ONCE):
                for k, image in enumerate(pool.map(self._prepared, rows[first : first + _AT_ONCE]), first):
                    if isinstance(image, BadImage):
                        data = str(image).encode()
                        table[k] = (at, len(data), isinstance(image, Inaccessible), 0, 0)
                    else:
                        data = image.tobytes()
                        table[k] = (at, *image.shape, image.itemsize)
                    out.write(data)
                    at = out.seek(_aligned(at + len(data)))
            out.truncate(at)
            out.seek(0)
            out.write(table.tobytes())

    def _prepared(self, row: int) -> np.ndarray | BadImage:
        """An image's values, or why it cannot be read."""
        try:
            image = self.original.read(row, self.side)
        except BadImage as error:
            return error.with_traceback(None)
        return np.ascontiguousarray(shrunk(image, self.side))


def _aligned(at: int) -> int:
    return -(-at // _ALIGNED) * _ALIGNED
