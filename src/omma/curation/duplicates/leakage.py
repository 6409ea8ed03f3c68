"""Duplicates that lie in two splits, or in two collections: what a test should not have seen in training."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Shaped

from omma.core.protocols import Images
from omma.curation.duplicates.result import Found, Pair


def across(found: Found, splits: Shaped[np.ndarray, "n"] | Sequence[str]) -> tuple[Pair, ...]:
    """Pairs of duplicates in different splits, for each image that has one there; splits: of each image.

    An image with several duplicates in other splits is paired with one of them, or with one of each class of
    the same bytes or pixels, so the pairs do not grow with the square of the copies.
    """
    members = _classes(found.pairs)
    leaks: dict[tuple[int, int], Pair] = {}
    for pair in found.pairs:
        one, other = members.get(pair.a, (pair.a,)), members.get(pair.b, (pair.b,))
        for rows, partners in ((one, other), (other, one)):
            for row in rows:
                partner = next((each for each in partners if splits[each] != splits[row]), None)
                if partner is not None:
                    a, b = sorted((row, partner))
                    leaks.setdefault((a, b), replace(pair, a=a, b=b))
    return tuple(leaks.values())


def _classes(pairs: Sequence[Pair]) -> dict[int, list[int]]:
    """For each image with the same bytes or pixels as others, all of them."""
    of: dict[int, list[int]] = {}
    for pair in pairs:
        if pair.kind != "near":
            one, other = of.setdefault(pair.a, [pair.a]), of.setdefault(pair.b, [pair.b])
            if one is not other:
                one += other
                of.update(dict.fromkeys(other, one))
    return of


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
