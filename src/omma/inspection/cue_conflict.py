"""Pictures with the shape of one class and the texture of another [Geirhos 2019, arXiv 1811.12231]."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from omma.core.protocols import Images
from omma.core.words import count
from omma.data.sources.columns import listed, texts
from omma.data.sources.indexed import IndexedImages

COLUMNS = ("shape", "texture")


@dataclass(frozen=True)
class Conflicts:
    """Pictures whose shape and texture are of different classes."""

    images: Images
    classes: tuple[str, ...]  # of either, sorted
    shapes: Int[np.ndarray, "n"]
    textures: Int[np.ndarray, "n"]
    left_out: int = 0  # pictures of the source in which both are of one class

    def __len__(self) -> int:
        return len(self.shapes)

    def subset(self, rows: Int[np.ndarray, "m"]) -> "Conflicts":
        """Some of the pictures."""
        return Conflicts(
            self.images.subset(rows), self.classes, self.shapes[rows], self.textures[rows], self.left_out
        )

    def of(self, known: Sequence[str]) -> "Conflicts":
        """The pictures of which both classes are among these."""
        have = np.isin(self.classes, list(known))
        return self.subset(np.flatnonzero(have[self.shapes] & have[self.textures]))


def read(images: Images, source: str) -> Conflicts:
    """The pictures of a table with columns `shape` and `texture`, without those in which both are equal.

    Raises ValueError where a column is missing or has an empty cell, and where no picture has a conflict.
    """
    table = images.columns if isinstance(images, IndexedImages) else None
    have = [] if table is None else table.column_names
    if table is None or (missing := [name for name in COLUMNS if name not in have]):
        what = "no table" if table is None else f"no column {' or '.join(missing)}; it has {listed(have)}"
        raise ValueError(
            f"{source}: {what}: the cue-conflict test reads pictures of a table with the columns path, shape "
            "and texture"
        )
    columns = [[(value or "").strip() for value in texts(table, name).to_pylist()] for name in COLUMNS]
    for name, values in zip(COLUMNS, columns):
        if (empty := values.count("")) > 0:
            row = values.index("")
            raise ValueError(
                f"{source}: {count(empty, 'picture')} without a {name}, the first {images.path(row)}: name "
                "the class of each"
            )
    classes = sorted({*columns[0], *columns[1]})
    shapes, textures = (np.array([classes.index(value) for value in values], np.int64) for values in columns)
    rows = np.flatnonzero(shapes != textures)
    if not len(rows):
        raise ValueError(
            f"{source}: shape and texture are the same in all of {count(len(images), 'picture')}: the test "
            "needs pictures in which they differ"
        )
    whole = Conflicts(images, tuple(classes), shapes, textures, len(images) - len(rows))
    return whole.subset(rows)
