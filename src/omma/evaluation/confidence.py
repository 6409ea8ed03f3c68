"""How sure a score is: bootstrap intervals over the test images, seeded and vectorised."""

import numpy as np
from jaxtyping import Bool, Int

ROUNDS = 10_000


def bootstrap(
    correct: Bool[np.ndarray, "m"], seed: int = 0, level: float = 0.95, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Percentile interval of the share of correct answers.

    Resampling m right-or-wrong answers with replacement draws a binomial count, so that is what is drawn.
    All right or all wrong leaves nothing to resample: the open end is then the exact binomial bound
    (Clopper-Pearson), since 24 of 24 right is no proof of 100 %.
    """
    m = len(correct)
    if m == 0:
        raise ValueError("no test images: an interval needs at least one")
    hits, tail = int(np.count_nonzero(correct)), (1 - level) / 2
    if hits in (0, m):
        bound = float(tail ** (1 / m))
        return (bound, 1.0) if hits else (0.0, 1 - bound)
    shares = np.random.default_rng((seed, 0xB007)).binomial(m, hits / m, size=rounds) / m
    low, high = np.quantile(shares, [tail, 1 - tail])
    return float(low), float(high)


def paired(
    a: Bool[np.ndarray, "m"],
    b: Bool[np.ndarray, "m"],
    seed: int = 0,
    level: float = 0.95,
    rounds: int = ROUNDS,
) -> tuple[float, float]:
    """Percentile interval of accuracy(a) - accuracy(b), both over the same test images.

    Sharper than two separate intervals, since hard images are hard for both. An interval above 0 says that
    `a` is better; (0, 0) says that they answer alike.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"paired answers differ in number: {len(a)} and {len(b)}")
    m = len(a)
    only_a, only_b = np.count_nonzero(a & ~b), np.count_nonzero(~a & b)
    shares = np.array([only_a, only_b, m - only_a - only_b]) / m
    draws = np.random.default_rng((seed, 0xB007)).multinomial(m, shares, size=rounds)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / m, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def clustered(
    hits: Int[np.ndarray, "n"],
    queries: Int[np.ndarray, "n"],
    seed: int = 0,
    level: float = 0.95,
    rounds: int = ROUNDS,
) -> tuple[float, float]:
    """Percentile interval of sum(hits) / sum(queries), where a row's queries are alike: captions of an image.

    Rows are resampled, not queries. All right or all wrong: the exact bound of that many rows, as in
    `bootstrap`.
    """
    if hits.sum() in (0, queries.sum()):
        return bootstrap(hits > 0, seed, level, rounds)
    return _ratio(hits, queries, seed, level, rounds)


def paired_clustered(
    a: Int[np.ndarray, "n"],
    b: Int[np.ndarray, "n"],
    queries: Int[np.ndarray, "n"],
    seed: int = 0,
    level: float = 0.95,
    rounds: int = ROUNDS,
) -> tuple[float, float]:
    """As `paired`, of (sum(a) - sum(b)) / sum(queries)."""
    return _ratio(a - b, queries, seed, level, rounds)


def _ratio(
    above: Int[np.ndarray, "n"], below: Int[np.ndarray, "n"], seed: int, level: float, rounds: int
) -> tuple[float, float]:
    # rows that are equal are drawn together: few numbers a round, however many rows there are
    kinds, counts = np.unique(np.stack([above, below], 1), axis=0, return_counts=True)
    draws = np.random.default_rng((seed, 0xB007)).multinomial(len(above), counts / len(above), size=rounds)
    low, high = np.quantile(draws @ kinds[:, 0] / (draws @ kinds[:, 1]), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
