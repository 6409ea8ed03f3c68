"""Duplicates that lie in two splits, or in two collections: what a test should not have seen in training."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from omma.core.protocols import Images
from omma.curation.duplicates.result import Found, Pair


def across(found: Found, splits: Shaped[np.ndarray, "n"] | Sequence[str]) -> tuple[Pair, ...]:
    """The pairs whose images are in different splits; splits: of each image.

    Images with the same bytes or pixels are paired with the best of them alone, so one pair stands for
    each image that leaks, not one for each way in which it does.
    """
    return tuple(pair for pair in found.pairs if splits[pair.a] != splits[pair.b])


class Joined:
    """Two collections as one: `images`, then `others`, with "train" and "test" as their splits.

    Images of the second are those to protect: they are never proposed for removal.
    """

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __init__(self, images: Images, others: Images) -> None:
        if images.channels != others.channels:
            raise ValueError(
                f"images of {images.channels} channels are compared with images of {others.channels}: "
                "give collections of the same kind"
            )
        self.parts = (images, others)
        self.channels = images.channels
        self.splits = np.array(["train"] * len(images) + ["test"] * len(others))
        self.encoded = all(getattr(each, "encoded", False) for each in self.parts)

    def __len__(self) -> int:
        return sum(len(each) for each in self.parts)

    def _at(self, i: int) -> tuple[Images, int]:
        first = len(self.parts[0])
        return (self.parts[0], int(i)) if i < first else (self.parts[1], int(i) - first)

    def path(self, i: int) -> str:
        images, row = self._at(i)
        return images.path(row)

    def read(self, i: int, at_least: int | None = None) -> np.ndarray:
        images, row = self._at(i)
        return images.read(row, at_least)

    def content(self, i: int) -> bytes:
        """The file's bytes, before decoding. Raises BadImage."""
        images, row = self._at(i)
        return images.content(row)  # type: ignore[attr-defined]

    def subset(self, indices: np.ndarray) -> "Joined":
        indices = np.asarray(indices)
        first = len(self.parts[0])
        if (np.diff((indices >= first).astype(int)) < 0).any():
            raise ValueError("indices of the first collection must come before those of the second")
        return Joined(
            self.parts[0].subset(indices[indices < first]),
            self.parts[1].subset(indices[indices >= first] - first),
        )
