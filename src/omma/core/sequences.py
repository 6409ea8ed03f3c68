"""What belongs together: frames of a sequence, and numbers beside an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Frames of one sequence that make a sample; a method's file states them in `frames(config)`.

    They are drawn anew for each image and epoch [data/batches/frames.py]: one of them is the image itself.
    The views are then [b, count, c, s, s], in the order of the frames.
    """

    count: int
    least: float = 1.0  # distance of one frame to the next, in units of the column `frame`
    most: float | None = None  # None: any
    order: Literal["ascending", "any"] = "ascending"  # any: either of two frames may be the first
    together: bool = True  # cut by the same box, with the same flip and colour; or each by its own
    alone: bool = False  # may an image without such others stand for all frames? Else it is left out

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"count={self.count} of Frames: must be at least 2")
        if not self.least > 0:
            raise ValueError(f"least={self.least} of Frames: must be above 0")
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most={self.most} of Frames: must be at least {self.least}, the least")


@dataclass(frozen=True, kw_only=True)
class Field:
    """Numbers that come with each image, from columns of a table.

    The columns are those in `columns`, else the one that is called `name` (numbers, or lists of them), else
    name0, name1, ... A value is missing where a cell is empty, no number, or not finite.
    """

    name: str
    columns: tuple[str, ...] = ()
    size: int | None = None  # numbers an image; None: as many as the table has
    missing: Literal["refuse", "nan"] = "refuse"  # an image whose value is missing: an error, or NaN
    optional: bool = False  # the columns may lack altogether; then `Batch.fields` lacks the name
    kind: Literal["numbers", "names"] = "numbers"  # names: each text's code from 0, -1 where missing


class Tracks(NamedTuple):
    """Sequences and fields of a collection; rows are its images."""

    sequence: Int[np.ndarray, "n"] | None  # code of each image's sequence
    frame: Float[np.ndarray, "n"] | None  # its place in it
    fields: Mapping[str, Float[np.ndarray, "n d"]] = MappingProxyType({})
