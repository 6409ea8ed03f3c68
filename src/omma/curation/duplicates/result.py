"""What a search for duplicates finds."""

from dataclasses import dataclass
from typing import Literal

from omma.curation.duplicates.calibrate import Calibration
from omma.curation.duplicates.groups import Group
from omma.curation.duplicates.rule import Rule

Kind = Literal["file", "pixels", "near"]


@dataclass(frozen=True)
class Pair:
    """Two images that are duplicates, a < b: rows of the collection.

    Of images with the same bytes or pixels each is paired with the best one, not with all; and one of them
    stands for the others in pairs that look the same.
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
    rule: Rule
    calibration: Calibration | None  # None: too few images
    bad: tuple[tuple[int, str], ...]  # images that cannot be read, and why
    notes: tuple[str, ...]

    @property
    def threshold(self) -> float | None:
        """Cosine from which on features alone decide that two images are duplicates; None: no features."""
        return self.rule.threshold

    @property
    def hash_limit(self) -> int:
        """Bits up to which the hash alone does."""
        return self.rule.hash_limit
