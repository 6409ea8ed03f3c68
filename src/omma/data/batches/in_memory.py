"""Small images of one size, decoded once into one tensor."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Num
from torch import Tensor

from omma.core.device import machine_memory
from omma.core.protocols import BadImage, Images
from omma.data.batches.skip_bad import Reader
from omma.data.sources.values import read_in

MAX_SIDE = 96  # pixels: larger images cost more to cut by dense matrices than to decode again
SOUND_SIDE = 128  # frames of a tile, which takes longer to make of its sound (.9 ms) than to cut (.4 ms)
MAX_BYTES = 2 << 30  # and at most a quarter of the machine's memory


def memory_bytes() -> int:
    """Memory of this machine or container: all of it, not what is free, so that restarts agree."""
    sizes = [machine_memory()]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(sizes)


def fits_in_memory(images: Images) -> bool:
    """Whether the images are equally large (a few are read to see), small, and small enough in all."""
    reader = Reader(images, images.read)
    n = len(images)
    sample = [reader.read(int(i))[0] for i in np.linspace(0, n - 1, min(n, 8)).astype(int)]
    most = SOUND_SIDE if getattr(images, "kind", "image") == "sound" else MAX_SIDE
    if len({image.shape for image in sample}) > 1 or max(sample[0].shape[:2]) > most:
        return False
    bytes_each = sample[0].size * (1 if sample[0].dtype == np.uint8 else 4)  # others become float32
    return n * bytes_each <= min(MAX_BYTES, memory_bytes() // 4)


@dataclass
class Decoded:
    """All images of a collection."""

    pixels: Num[Tensor, "n c h w"]
    read: Int64[np.ndarray, "n"]  # the image whose pixels stand in each row: the next good one for a bad one
    bad: dict[int, str]

    def good(self, rows: Int64[np.ndarray, "b f"]) -> Int64[np.ndarray, "b f"]:
        """The rows with each bad frame replaced by the first good one of its sample, where there is one."""
        bad = self.read[rows] != rows
        first = rows[np.arange(len(rows)), bad.argmin(1)]
        return np.where(bad, first[:, None], rows)


def decode_all(images: Images, full_scale: float | None = None) -> Decoded | None:
    """Decode every image, as `loader.stream` does; None where they turn out to differ in size or type."""
    read_one = partial(read_in, images, full_scale)
    reader = Reader(images, read_one)
    n = len(images)
    first = reader.read(0)[0]
    pixels = np.empty((n, first.shape[2], *first.shape[:2]), dtype=first.dtype)
    read = np.arange(n)

    def load(i: int) -> bool:
        try:
            image = read_one(i)
        except BadImage as error:
            reader.bad[i] = str(error)
            return True
        if image.shape != first.shape or image.dtype != first.dtype:
            return False
        pixels[i] = image.transpose(2, 0, 1)
        return True

    # in chunks, so that an unexpected size is found before a million futures are waiting
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, n, 4096):
            if not all(pool.map(load, range(start, min(start + 4096, n)), chunksize=1)):
                return None
    for i in reader.bad:
        read[i] = reader.read(i)[1]
        pixels[i] = pixels[read[i]]
    return Decoded(torch.from_numpy(pixels), read, reader.bad)
