"""Reading images one by one, each bad one replaced by the next good one."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, Num
from torch import Tensor

from omma.core.protocols import BadImage, Images, Key

Got = TypeVar("Got")


class Part(NamedTuple):
    """Some images of a batch, cut."""

    crops: tuple[Num[Tensor, "b v c s s"], ...]
    key: Key
    read: Int64[np.ndarray, "b"]  # indices of the images that were read
    bad: dict[int, str]


class Reader(Generic[Got]):
    """Reads images by `load`, each bad one replaced by the next that can be read; remembers the bad ones."""

    def __init__(self, images: Images, load: Callable[[int], Got]) -> None:
        self.images, self.load = images, load
        self.bad: dict[int, str] = {}

    def read(self, index: int) -> tuple[Got, int, list[int]]:
        """What was loaded, the index that it comes from, and the bad ones passed over."""
        n = len(self.images)
        passed: list[int] = []
        for i in (j % n for j in range(index, index + n)):
            if i not in self.bad:
                try:
                    return self.load(i), i, passed
                except BadImage as error:
                    self.bad[i] = str(error)
            passed.append(i)
        raise ValueError(
            f"none of {n} images can be read (first: {self.images.path(index)}: {self.bad[index]})"
        )
