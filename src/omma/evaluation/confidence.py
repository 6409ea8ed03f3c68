"""Confidence intervals of scores: seeded, vectorised bootstraps over the test images.

Images of one group (a sequence, a site) are not independent. With groups, whole groups are drawn with
replacement, with all their images (cluster bootstrap: Davison & Hinkley 1997, section 3.8; Field & Welsh
2007, J. R. Stat. Soc. B 69(3)). With few groups such intervals are too narrow; of one group nothing is known.
"""

import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

ROUNDS, LEVEL = 10_000, 0.95
RESAMPLES = 1_000  # rounds in which images are drawn one by one, where counts do not suffice

OfGroups = Int[np.ndarray, "m"]  # the group of each test image


def bootstrap(
    correct: Bool[np.ndarray, "m"], seed: int = 0, rounds: int = ROUNDS, groups: OfGroups | None = None
) -> tuple[float, float]:
    """Percentile interval of the share of correct answers.

    The number of correct answers among m drawn with replacement is binomial, so it is drawn directly. If all
    answers are correct, or none, resampling has no variance, though 24 of 24 correct do not prove 100 %: the
    open end is then the exact binomial bound (Clopper-Pearson).
    groups: whole groups are drawn, and the exact bound is that of as many answers as there are groups. One
    group gives 0 to 1.
    """
    m = len(correct)
    if m == 0:
        raise ValueError("no test images: an interval needs at least one")
    hits, tail = int(np.count_nonzero(correct)), (1 - LEVEL) / 2
    if groups is not None:
        right, sizes = _by_group(np.asarray(correct, np.int64), groups)
        if hits in (0, m):
            return exact(len(sizes), all_right=bool(hits))
        return (0.0, 1.0) if len(sizes) == 1 else ratio(right, sizes, seed, rounds=rounds)
    if hits in (0, m):
        return exact(m, all_right=bool(hits))
    shares = np.random.default_rng((seed, 0xB007)).binomial(m, hits / m, size=rounds) / m
    low, high = np.quantile(shares, [tail, 1 - tail])
    return float(low), float(high)


def exact(m: int, all_right: bool) -> tuple[float, float]:
    """The Clopper-Pearson interval of a share of which all m answers are right, or none."""
    bound = float(((1 - LEVEL) / 2) ** (1 / m))
    return (bound, 1.0) if all_right else (0.0, 1 - bound)


def opened(
    ends: Float[np.ndarray, "c 2"], values: Float[np.ndarray, "c"], n: Int[np.ndarray, "c"]
) -> Float[np.ndarray, "c 2"]:
    """Intervals of shares; one of 0 or 1 that no draw changes becomes that of n answers all alike."""
    for k in np.flatnonzero((ends[:, 0] == ends[:, 1]) & np.isin(values, (0.0, 1.0)) & (n > 0)):
        ends[k] = exact(int(n[k]), all_right=bool(values[k]))
    return ends


def percentiles(
    draws: Float[np.ndarray, "*s r"], values: Float[np.ndarray, "*s"] | None = None
) -> Float[np.ndarray, "*s 2"]:
    """Both ends of the percentile interval over the last axis, without draws that are NaN (not defined).

    values: move the draws so that their mean is this. It is for statistics that resampling raises: images
    drawn twice look like separate ones. NaN where no draw is defined.
    """
    if values is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a row without a defined draw
            draws = draws + (values - np.nanmean(draws, -1))[..., None]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    if not np.isnan(draws).any():
        return np.moveaxis(np.quantile(draws, tails, axis=-1), 0, -1)
    ends = np.full((*draws.shape[:-1], 2), np.nan)
    defined = ~np.isnan(draws).all(-1)
    if defined.any():
        ends[defined] = np.nanquantile(draws[defined], tails, axis=-1).T
    return ends


def several(groups: OfGroups | None) -> OfGroups | None:
    """The groups to draw; None if there is only one, so that its images are drawn.

    Such an interval says nothing of another group, and whoever shows it must say so.
    """
    return None if groups is None or len(np.unique(groups)) < 2 else groups


def _by_group(
    values: Int[np.ndarray, "m"] | Float[np.ndarray, "m"], groups: OfGroups
) -> tuple[np.ndarray, Int[np.ndarray, "g"]]:
    """Sum and number of the values of each group; sums of integers are integers."""
    _, codes = np.unique(groups, return_inverse=True)
    sizes = np.bincount(codes.reshape(-1))
    sums = np.zeros(len(sizes), values.dtype)
    np.add.at(sums, codes.reshape(-1), values)
    return sums, sizes


def resamples(
    m: int,
    seed: int = 0,
    rounds: int = RESAMPLES,
    block: int = 125,
    groups: OfGroups | None = None,
) -> Iterator[Float[np.ndarray, "m b"]]:
    """How often each of m images is drawn, a column a round, `block` rounds at a time, in fp32.

    groups: as many groups as there are are drawn, so the images of a round vary in number.
    """
    if groups is not None:
        _, codes = np.unique(groups, return_inverse=True)
        for weights in resamples(int(codes.max()) + 1, seed, rounds, block):
            yield weights[codes.reshape(-1)]
        return
    rng = np.random.default_rng((seed, 0xB007))
    for first in range(0, rounds, block):
        b = min(block, rounds - first)
        drawn = rng.integers(m, size=(b, m)) + m * np.arange(b)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=b * m).reshape(b, m)
        yield np.ascontiguousarray(counts.T, np.float32)


def mean(
    values: Float[np.ndarray, "m"], seed: int = 0, groups: OfGroups | None = None
) -> tuple[float, float]:
    """Percentile interval of the mean of real values, one an image; groups: whole groups are drawn.

    One group gives -inf to inf.
    """
    if len(values) == 0:
        raise ValueError("no test images: an interval needs at least one")
    sizes = np.ones(len(values))
    if groups is not None:
        values, sizes = _by_group(np.asarray(values, np.float64), groups)
        if len(sizes) == 1:
            return -np.inf, np.inf
    draws = [(values @ w) / (sizes @ w) for w in resamples(len(values), seed)]
    draws = np.concatenate(draws)
    low, high = percentiles(draws)
    return float(low), float(high)


def paired(
    a: Bool[np.ndarray, "m"],
    b: Bool[np.ndarray, "m"],
    seed: int = 0,
    level: float = LEVEL,
    groups: OfGroups | None = None,
) -> tuple[float, float]:
    """Percentile interval of accuracy(a) - accuracy(b), both over the same test images.

    Narrower than two separate intervals, since hard images are hard for both. An interval above 0 means that
    `a` is better; (0, 0) that no image tells them apart.
    groups: whole groups are drawn. One group gives -1 to 1, unless no image tells them apart.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"paired answers must be equal in number and not empty: {len(a)} and {len(b)}")
    m = len(a)
    if groups is not None:
        gains, sizes = _by_group(a.astype(np.int64) - b, groups)
        if len(sizes) == 1 and (a != b).any():
            return -1.0, 1.0
        return ratio(gains, sizes, seed, level)
    only_a, only_b = np.count_nonzero(a & ~b), np.count_nonzero(~a & b)
    shares = np.array([only_a, only_b, m - only_a - only_b]) / m
    draws = np.random.default_rng((seed, 0xB007)).multinomial(m, shares, size=ROUNDS)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / m, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def balanced(hits: Int[np.ndarray, "c"], sizes: Int[np.ndarray, "c"], seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean over classes of hits / sizes, images resampled within each class.

    sizes: test images of each class, at least 1. If all answers are correct, or none, the open end is that of
    `bootstrap` for the smallest class.
    """
    if hits.sum() in (0, sizes.sum()):
        return bootstrap(np.full(int(sizes.min()), bool(hits.sum())), seed)
    rng, means = np.random.default_rng((seed, 0xB007)), np.zeros(ROUNDS)
    for hit, size in zip(hits.tolist(), sizes.tolist(), strict=True):
        means += rng.binomial(size, hit / size, ROUNDS) / size
    low, high = np.quantile(means / len(sizes), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def balanced_by_group(
    correct: Bool[np.ndarray, "m"], labels: Int[np.ndarray, "m"], groups: OfGroups, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over classes of the share of correct answers, by draws of whole groups.

    A draw's mean is over the classes that it has. If all answers are correct, or none, the open end is that
    of `bootstrap` for the groups of the class that has fewest; one group gives 0 to 1.
    """
    _, members = np.unique(labels, return_inverse=True)
    _, codes = np.unique(groups, return_inverse=True)
    members, codes = members.reshape(-1), codes.reshape(-1)
    shape = int(members.max()) + 1, int(codes.max()) + 1
    if correct.all() or not correct.any():
        fewest = int(np.bincount(np.unique(np.stack([members, codes]), axis=1)[0]).min())
        return exact(fewest, all_right=bool(correct.all()))
    if shape[1] == 1:
        return 0.0, 1.0
    sizes, hits = (
        sparse.csr_array((each.astype(np.float64), (members, codes)), shape=shape)
        for each in (np.ones(len(labels)), correct)
    )
    means = []
    for weights in resamples(shape[1], seed):
        drawn = sizes @ weights
        means.append((hits @ weights / np.maximum(drawn, 1)).sum(0) / np.maximum((drawn > 0).sum(0), 1))
    low, high = percentiles(np.concatenate(means))
    return float(low), float(high)


def clustered(
    hits: Int[np.ndarray, "n"], queries: Int[np.ndarray, "n"], seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of sum(hits) / sum(queries), where the queries of a row depend on each other.

    Rows (images, with their captions as queries) are resampled, not queries. If all or no queries are hits,
    the bound is that of `bootstrap` for as many rows.
    """
    if hits.sum() in (0, queries.sum()):
        return bootstrap(hits > 0, seed)
    return ratio(hits, queries, seed)


def ratio(
    numerator: Int[np.ndarray, "n"],
    denominator: Int[np.ndarray, "n"],
    seed: int = 0,
    level: float = LEVEL,
    rounds: int = ROUNDS,
    groups: Int[np.ndarray, "n"] | None = None,
) -> tuple[float, float]:
    """Percentile interval of sum(numerator) / sum(denominator), over rows, or groups, drawn with replacement.

    Of one row, or group, it has no width.
    """
    if groups is not None:
        numerator, denominator = (_by_group(each, groups)[0] for each in (numerator, denominator))
    # equal rows are drawn as one multinomial count, so a round draws few numbers however many rows there are
    kinds, counts = np.unique(np.stack([numerator, denominator], 1), axis=0, return_counts=True)
    draws = np.random.default_rng((seed, 0xB007)).multinomial(
        len(numerator), counts / len(numerator), size=rounds
    )
    low, high = np.quantile(draws @ kinds[:, 0] / (draws @ kinds[:, 1]), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
