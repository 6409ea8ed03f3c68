"""Average precision: of each class, their mean, and of all scores together, with intervals over images.

Values are scikit-learn's. In a draw only the counts of images change, not their order, so that the scores
are cut once at those of the positives, and a draw is one sparse product and a cumulative sum.
"""

from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn import metrics as sk

from omma.evaluation import confidence

EFFORT = 4e9  # images x classes x rounds that the intervals may take
LARGEST = 30_000_000  # scores that are ranked together for the micro average


class AveragePrecisions(NamedTuple):
    """By class, their mean over the classes that have positives, and that of all scores ranked together."""

    by_class: Float[np.ndarray, "c"]  # NaN without positives
    intervals: Float[np.ndarray, "c 2"]
    overall: dict[str, float]  # "map_macro", and "map_micro" unless there are too many scores
    draws: dict[str, Float[np.ndarray, "r"]]  # of the overall values


def average_precisions(
    scores: Float[np.ndarray, "m c"],
    positive: Bool[np.ndarray, "m c"],
    known: Bool[np.ndarray, "m c"],
    seed: int,
    groups: Int[np.ndarray, "m"] | None = None,
) -> AveragePrecisions:
    """Average precisions of the known scores, with intervals that draw images, or whole groups of them."""
    m, c = scores.shape
    tested = np.flatnonzero((positive & known).any(0))
    ranked = [_Ranked.of(scores[known[:, k], k], positive[known[:, k], k]) for k in tested]
    rows = [np.flatnonzero(known[:, k]) for k in tested]
    together, owners = None, np.zeros(0, np.int64)
    if scores.size <= LARGEST and len(tested):
        together, owners = _Ranked.of(scores[known], positive[known]), np.nonzero(known)[0]
    values = np.full(c, np.nan)
    values[tested] = [_scikit_ap(positive[r, k], scores[r, k]) for r, k in zip(rows, tested)]
    segments = [r.segments(images, m) for r, images in zip(ranked, rows)]
    micro = None if together is None else together.segments(owners, m)
    rounds = int(np.clip(EFFORT / max(scores.size, 1), 100, confidence.RESAMPLES))
    draws = np.full((c, rounds), np.nan)
    micro_draws, first = np.full(rounds, np.nan), 0
    for weights in confidence.resamples(m, seed, rounds, groups=groups):
        here = slice(first, first := first + weights.shape[1])
        for k, pair in zip(tested, segments):
            draws[k, here] = _ap(*pair, weights)
        if micro is not None:
            micro_draws[here] = _ap(*micro, weights)
    support = (positive & known).sum(0)
    if groups is not None:
        support = np.array([len(np.unique(groups[rows])) for rows in (positive & known).T], np.int64)
    ends = confidence.percentiles(draws, values).clip(0, 1)
    intervals = confidence.opened(ends, values, support)
    overall, found = {}, {}
    if len(tested):
        overall["map_macro"] = float(values[tested].mean())
        defined = ~np.isnan(draws[tested])
        found["map_macro"] = np.where(defined, draws[tested], 0).sum(0) / np.maximum(defined.sum(0), 1)
    if micro is not None:
        overall["map_micro"] = _scikit_ap(positive[known], scores[known])
        found["map_micro"] = micro_draws
    return AveragePrecisions(values, intervals, overall, found)


def mean_average_precision(scores: Float[np.ndarray, "m c"], targets: Int[np.ndarray, "m c"]) -> float:
    """Over the classes that any image has, 0 without one; targets: 1, 0, or -1, which is not known."""
    known = targets >= 0
    found = [
        _scikit_ap(targets[rows, k] > 0, scores[rows, k])
        for k, rows in enumerate(known.T)
        if (targets[rows, k] > 0).any()
    ]
    return float(np.mean(found)) if found else 0.0


def _scikit_ap(positive: Bool[np.ndarray, "n"], scores: Float[np.ndarray, "n"]) -> float:
    return float(cast(float, sk.average_precision_score(positive, scores)))


class _Ranked(NamedTuple):
    """Scores cut at the distinct scores of the positives, from high to low.

    Segment k holds what lies from the k-th of these scores up to the one before; the last one, the rest.
    """

    segment: Int[np.ndarray, "n"]
    positive: Bool[np.ndarray, "n"]
    cuts: int

    @classmethod
    def of(cls, scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> "_Ranked":
        cuts = np.unique(scores[positive])  # ascending
        segment = len(cuts) - np.searchsorted(cuts, scores, side="right")
        return cls(segment, positive, len(cuts))

    def segments(self, owners: Int[np.ndarray, "n"], m: int) -> tuple[sparse.csr_array, sparse.csr_array]:
        """The positives, and all scores, of each segment but the last: a row a segment, a column an image."""
        pair = []
        for chosen in (self.positive, self.segment < self.cuts):
            where = (self.segment[chosen], owners[chosen])
            ones = np.ones(len(where[0]), np.float32)
            pair.append(sparse.csr_array((ones, where), shape=(self.cuts, m)))
        return pair[0], pair[1]


def _ap(
    positive: sparse.csr_array, every: sparse.csr_array, weights: Float[np.ndarray, "m b"]
) -> Float[np.ndarray, "b"]:
    """Sum over the cuts of (recall's step) x precision, for each column of weights; NaN without positives."""
    steps = (positive @ weights).astype(np.float64)
    above = np.cumsum(every @ weights, 0, dtype=np.float64)
    hits = np.cumsum(steps, 0)
    total = hits[-1]
    sums = (steps * hits / np.maximum(above, 1)).sum(0)
    return np.where(total > 0, sums / np.maximum(total, 1), np.nan)
