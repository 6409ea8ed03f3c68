"""Reading images one by one, each bad one replaced by the next good one."""

import math
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, Num
from torch import Tensor

from omma.core.protocols import BadImage, Images, Inaccessible, Key
from omma.core.words import count

RETRY = 600.0  # seconds
Loaded = TypeVar("Loaded")


class RawCrops(NamedTuple):
    """Crops of a step's images, or of a worker's chunk of them, before augmentation."""

    crops: tuple[Num[Tensor, "b v c s s"], ...]  # raw values, for `augment.augment`
    key: Key  # of positions in the stream: a replacement keeps the key of the bad image that it replaces
    read: Int64[np.ndarray, "b"]  # indices of the images whose pixels these are
    bad: dict[int, str]  # index and reason of the bad images that were passed over


class Reader(Generic[Loaded]):
    """Reads images by `load`; each bad one is remembered, and replaced by the next that can be read.

    One that cannot be accessed is tried again after a while: its disk or server may have come back.
    """

    def __init__(self, images: Images, load: Callable[[int], Loaded]) -> None:
        self.images, self.load = images, load
        self.bad: dict[int, str] = {}
        self._again: dict[int, float] = {}  # when to try those that could not be accessed

    def read(self, index: int) -> tuple[Loaded, int, list[int]]:
        """What was loaded, the index that it comes from, and the bad ones passed over."""
        n = len(self.images)
        passed: list[int] = []
        for i in (j % n for j in range(index, index + n)):
            if i not in self.bad or time.monotonic() > self._again.get(i, math.inf):
                try:
                    return self.load(i), i, passed
                except BadImage as error:
                    self.bad[i] = str(error)
                    if isinstance(error, Inaccessible):
                        self._again[i] = time.monotonic() + RETRY
            passed.append(i)
        raise ValueError(
            f"none of {count(n, 'image')} can be read (first: {self.images.path(index)}: {self.bad[index]})"
        )

    def read_all(
        self, indices: Int64[np.ndarray, "b"]
    ) -> tuple[list[Loaded], Int64[np.ndarray, "b"], dict[int, str]]:
        """What was loaded, the indices it comes from, and the bad images passed over with their reasons."""
        read = [self.read(int(i)) for i in indices]
        bad = {i: self.bad[i] for _, _, passed in read for i in passed}
        return [loaded for loaded, _, _ in read], np.array([i for _, i, _ in read]), bad
