"""Which images belong to one sequence, and in which order: a time-lapse, a stack, a turntable, a clip.

A table says it with the columns `sequence` and `frame`. Without them each folder is a sequence, and its
frames are counted in the order of the numbers in their names (frame 9 comes before frame 10).
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from omma.core.words import count
from omma.data.sources.columns import shown, texts
from omma.data.sources.groups import codes_of
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.selection import values_of
from omma.data.sources.tables import FRAME, SEQUENCE

_DIGITS = re.compile(r"(\d+)")


class Sequences(NamedTuple):
    """Sequence and place of each image, and what to know of how they were read."""

    sequence: Int[np.ndarray, "n"]  # code, from 0
    frame: Float[np.ndarray, "n"]  # float64, finite
    note: str


def read(images: IndexedImages) -> Sequences:
    """The sequences of a collection; an image whose cell `sequence` is empty is one of its own.

    Raises ValueError for a cell `frame` that is no finite number; the last may lack one.
    """
    columns = images.columns
    if columns is None or SEQUENCE not in columns.column_names:
        names = [images.path(i).rpartition("/")[0] or "." for i in range(len(images))]
        how = "each folder is a sequence (there is no column `sequence`)"
    else:
        names = values_of(images, SEQUENCE, "sequences")
        how = "column `sequence`"
    sequence = codes_of(names)
    if columns is not None and SEQUENCE in columns.column_names and FRAME in columns.column_names:
        frame, order = _numbers(images, names), "column `frame`"
    else:
        frame, order = _counted(images, sequence), "by the numbers in their names"
    note = f"{count(int(sequence.max()) + 1, 'sequence')}: {how}; frames in order: {order}"
    return Sequences(sequence, frame, note)


def _numbers(images: IndexedImages, names: list[str]) -> Float[np.ndarray, "n"]:
    assert images.columns is not None
    cells = texts(images.columns, FRAME).to_pylist()
    frame = np.empty(len(cells))
    for i, cell in enumerate(cells):
        try:
            frame[i] = float(cell)  # pyright: ignore[reportArgumentType]  # None raises TypeError
        except (TypeError, ValueError):
            frame[i] = np.nan
        is_empty = cell is None or not cell.strip()
        if is_empty and not names[i]:
            frame[i] = 0.0  # the only one of its sequence
        elif not np.isfinite(frame[i]):
            what = "is empty" if is_empty else f"holds {shown(str(cell))}"
            raise ValueError(
                f"{images.source}: column `frame` {what} for {images.path(i)}: give each image of a sequence "
                "a number, by which they are ordered"
            )
    return frame


def _counted(images: IndexedImages, sequence: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Each image's place in its sequence, from 0, in natural order of the names."""
    paths = [images.path(i) for i in range(len(images))]
    order = np.array(sorted(range(len(paths)), key=lambda i: (sequence[i], _natural(paths[i]))))
    starts = np.searchsorted(sequence[order], sequence[order], "left")
    frame = np.empty(len(order))
    frame[order] = np.arange(len(order)) - starts
    return frame


def _natural(path: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers in a name as numbers."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in _DIGITS.split(path)]
