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
    read: Int64[np.ndarray, "b *f"]  # indices of the images whose pixels these are
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
            if (loaded := self._try(i)) is not None:
                return loaded, i, passed
            passed.append(i)
        raise ValueError(
            f"none of {count(n, 'image')} can be read (first: {self.images.path(index)}: {self.bad[index]})"
        )

    def _try(self, i: int) -> Loaded | None:
        """What is loaded of an image; None if it is bad."""
        if i not in self.bad or time.monotonic() > self._again.get(i, math.inf):
            try:
                return self.load(i)
            except BadImage as error:
                self.bad[i] = str(error)
                if isinstance(error, Inaccessible):
                    self._again[i] = time.monotonic() + RETRY
        return None

    def read_all(
        self, rows: Int64[np.ndarray, "b f"]
    ) -> tuple[list[Loaded], Int64[np.ndarray, "b f"], dict[int, str]]:
        """What was loaded, sample by sample; its indices; and the bad images passed over with their reasons.

        A bad frame is replaced by a good one of its sample; where none is good, as any bad image is.
        """
        loaded: list[Loaded] = []
        read, bad = rows.copy(), list[int]()
        for sample, frames in enumerate(rows.tolist()):
            good: dict[int, Loaded] = {}
            for i in dict.fromkeys(frames):
                if (found := self._try(i)) is not None:
                    good[i] = found
                else:
                    bad.append(i)
            if not good:
                found, at, passed = self.read(frames[0])
                good[at] = found
                bad += passed
            read[sample] = [i if i in good else next(iter(good)) for i in frames]
            loaded += [good[i] for i in read[sample].tolist()]
        return loaded, read, {i: self.bad[i] for i in bad}
