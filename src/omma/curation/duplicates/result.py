"""What a search for duplicates finds."""

from dataclasses import dataclass
from typing import Literal

from omma.curation.duplicates.calibrate import Calibration
from omma.curation.duplicates.groups import Group

Kind = Literal["file", "pixels", "near"]


@dataclass(frozen=True)
class Pair:
    """Two images that are duplicates, a < b: rows of the collection.

    Of images with the same bytes or pixels, each is paired with one of them, not with all.
    """

    a: int
    b: int
    kind: Kind  # "file": the same bytes; "pixels": the same pixels; "near": they look the same
    hash_distance: int | None = None  # of 63 bits, in the orientation that fits best
    similarity: float | None = None  # cosine of their features
    agreement: float | None = None  # correlation of their pixels where they coincide; None: not needed


@dataclass(frozen=True)
class Found:
    """Duplicates of a collection."""

    pairs: tuple[Pair, ...]  # by kind, the most alike first
    groups: tuple[Group, ...]
    threshold: float | None  # cosine from which on two images are duplicates; None: no features
    hash_limit: int  # bits up to which they are
    calibration: Calibration | None  # None: too few images
    bad: tuple[tuple[int, str], ...]  # images that cannot be read, and why
    notes: tuple[str, ...]
