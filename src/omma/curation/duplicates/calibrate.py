"""Thresholds from the user's own images: how alike two different ones are at most, and what copies reach."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

EXCESSES = 500  # largest values that the tail is fitted to
SHARE = 0.1  # of all values, at most
SHAPE = 0.5  # largest shape either way, of the fitted tail
FEW = 20  # images from which on a tail is estimated


class Share(NamedTuple):
    """How many of some copies are found."""

    found: int
    n: int

    @property
    def value(self) -> float:
        return self.found / max(self.n, 1)


@dataclass(frozen=True)
class Calibration:
    """What the thresholds were chosen by, and what they find."""

    recall: dict[str, Share]  # of copies made of these images, by kind
    false_positives: float  # rate among pairs of different images that the thresholds were set for
    pairs: int  # of different images, from which that rate is estimated
    copied: int  # images that copies were made of
    set_aside: int  # of the pairs, those that turned out to be duplicates

    @property
    def overall(self) -> Share:
        """Of all copies."""
        return Share(
            sum(each.found for each in self.recall.values()), sum(each.n for each in self.recall.values())
        )


def excesses(n: int) -> int:
    """How many of n values are used to fit the tail."""
    return max(1, min(EXCESSES, int(n * SHARE)))


def tail(values: Float[np.ndarray, "n"], rate: float) -> float:
    """The value that a share `rate` of what `values` are a sample of exceeds.

    values: the largest of a sample, at least two; those above the smallest are fitted by a generalised Pareto
    distribution [Pickands 1975], by probability-weighted moments [Hosking 1987], which reaches beyond the
    sample and is steadier than its few largest values. rate: as a share of the sample of which the values
    are the largest, so the caller gives rate * size of sample / len(values).
    """
    ordered = np.sort(np.asarray(values, np.float64))
    base, above = ordered[0], ordered[1:] - ordered[0]
    if rate >= 1 or len(above) == 0 or above[-1] == 0:
        return float(base)
    n = len(above)
    mean = above.mean()
    weighted = (above * (1 - (np.arange(1, n + 1) - 0.35) / n)).mean()
    shape = float(np.clip(2 - mean / (mean - 2 * weighted), -SHAPE, SHAPE))
    scale = mean * (1 - shape)
    if abs(shape) < 1e-6:
        return float(base - scale * np.log(rate))
    return float(base + scale / shape * (rate**-shape - 1))
