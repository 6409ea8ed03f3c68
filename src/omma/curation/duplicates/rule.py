"""Which pairs of images are duplicates: by hash, by features, or by both and by their pixels; calibrated.

The hash holds where an encoder may fail (compressed, grey, resized, mirrored), features where the hash fails
(cropped, turned). Each alone decides at its strict threshold. Between that and a loose one, pixels decide:
the two must coincide after alignment (align.py), which tells copies from look-alikes better than either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from omma.core.protocols import BadImage, Images
from omma.curation.duplicates import align, copies, hashes
from omma.curation.duplicates.calibrate import FEW, Share, excesses, tail
from omma.curation.duplicates.hashes import Hashes
from omma.ops.nearest import unit

AGREE = 0.6  # correlation of aligned pixels from which on two images are copies: they reach .76, others .39
DEVIATIONS = 6.0  # of random pairs' correlation that AGREE lies above their mean, or it is raised
SAMPLE = 2000  # images whose pairs give the tails
RANDOM = 100  # pairs that are aligned at random
ROUNDS = 8  # of setting duplicates aside
LOOSE = 0.01  # of all pairs that are aligned at most ...
EACH = 5  # ... and pairs an image
HASH_LIMIT = 8  # bits, where too few images are there to calibrate
PICTURES = 20_000  # kept in memory at a time: 160 MB
BLOCK = 64  # copies that are embedded at a time

Embed = Callable[[Sequence[np.ndarray]], Float[np.ndarray, "n d"]]


@dataclass
class Pictures:
    """Small pictures of a collection's images as alignment takes them, read when they are asked for."""

    images: Images
    known: dict[int, np.ndarray] = field(default_factory=dict)

    def __call__(self, rows: Int[np.ndarray, "p"]) -> Float[np.ndarray, "p s s"]:
        """One picture a row, of mean 0 and deviation 1; zeros where it cannot be read any more."""
        for row in np.unique(rows).tolist():
            if row not in self.known:
                if len(self.known) >= PICTURES:
                    self.known.pop(next(iter(self.known)))
                try:
                    self.known[row] = small(self.images.read(row, align.SIDE))
                except BadImage:
                    self.known[row] = np.zeros((align.SIDE, align.SIDE), np.float16)
        return np.stack([self.known[row] for row in rows.tolist()]) if len(rows) else _NONE


_NONE = np.zeros((0, align.SIDE, align.SIDE), np.float16)


def small(image: np.ndarray) -> Float[np.ndarray, "s s"]:
    """An image as alignment takes it."""
    values = hashes.picture(image, align.SIDE)
    return np.nan_to_num((values - values.mean()) / values.std()).astype(np.float16)


@dataclass(frozen=True)
class Rule:
    """When two images are duplicates."""

    hash_limit: int  # bits: they are
    hash_loose: int  # bits: they may be
    threshold: float | None  # cosine: they are; None: features say nothing
    loose: float | None  # cosine: they may be
    agreement: float  # correlation: of those that may be, they are

    def certain(self, distance: np.ndarray, cosine: np.ndarray | None) -> Bool[np.ndarray, "p"]:
        """Pairs that hash or features decide alone."""
        near = distance <= self.hash_limit
        return near if cosine is None or self.threshold is None else near | (cosine >= self.threshold)

    def possible(self, distance: np.ndarray, cosine: np.ndarray | None) -> Bool[np.ndarray, "p"]:
        """Pairs whose pixels are worth a look."""
        near = distance <= self.hash_loose
        return near if cosine is None or self.loose is None else near | (cosine >= self.loose)


@dataclass(frozen=True)
class Sample:
    """Images whose pairs are looked at, as rows of the collection, with what they are compared by."""

    rows: Int[np.ndarray, "m"]
    perceptual: np.ndarray  # uint64 [m, 8]
    vectors: Float[np.ndarray, "m d"] | None  # unit

    def tails(self, alive: Bool[np.ndarray, "m"], rng: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
        """For hash and features: the largest scores of pairs of those alive, and the pairs (a, b)."""
        at = np.flatnonzero(alive)
        count = excesses(len(at) * (len(at) - 1) // 2)
        bits = np.stack([self._distances(i, at) for i in at.tolist()]) if len(at) else np.zeros((0, 0))
        # distances are even numbers, as half of the bits are set; a part of 2 makes their tail continuous
        scores = [-(bits + 2 * rng.random(bits.shape))]
        if self.vectors is not None:
            scores.append(self.vectors[at] @ self.vectors[at].T)
        found = []
        for score in scores:
            score = np.where(np.tri(len(at), dtype=bool), -np.inf, score).ravel()
            top = np.argpartition(score, -count)[-count:]
            a, b = np.divmod(top, len(at))
            found.append((score[top], at[a], at[b]))
        return found

    def _distances(self, i: int, at: np.ndarray) -> np.ndarray:
        return hashes.distances(self.perceptual[i][None], self.perceptual[at])


def sample(found: Hashes, rows: np.ndarray, vectors: np.ndarray | None, seed: int) -> Sample:
    """At most SAMPLE of these rows."""
    rng = np.random.default_rng([seed, 2])
    rows = np.sort(rng.permutation(rows)[:SAMPLE])
    return Sample(rows, found.perceptual[rows], None if vectors is None else vectors[rows])


def chosen(some: Sample, pictures: Pictures, rate: float, total: int, seed: int) -> tuple[Rule, int, int]:
    """The rule at this rate of false positives, the pairs that it rests on, and images set aside for it.

    Duplicates that are in the collection would pass for different images that look the same, so those
    whose pixels coincide are set aside first. total: images of the whole collection.
    """
    rng = np.random.default_rng([seed, 3])
    m = len(some.rows)
    if m < FEW:
        return Rule(HASH_LIMIT, hashes.BITS // 2, None, None if some.vectors is None else -1.0, AGREE), 0, 0
    a, b = rng.integers(0, m, (2, RANDOM))
    apart = a != b
    chance = align.agreement(pictures(some.rows[a[apart]]), pictures(some.rows[b[apart]]))
    usual = chance[chance < AGREE]
    agree = max(AGREE, float(usual.mean() + DEVIATIONS * usual.std())) if len(usual) else 1.0
    alive, judged = np.ones(m, bool), dict[tuple[int, int], bool]()
    for _ in range(ROUNDS):
        tails = some.tails(alive, rng)
        new = sorted({pair for _, a, b in tails for pair in zip(a.tolist(), b.tolist())} - judged.keys())
        if new:
            first, second = np.array(new).T
            values = align.agreement(pictures(some.rows[first]), pictures(some.rows[second]))
            judged.update(zip(new, (values >= agree).tolist()))
        same = [pair for _, a, b in tails for pair in zip(a.tolist(), b.tolist()) if judged[pair]]
        if not same:
            break
        for first, second in same:
            if alive[first] and alive[second]:
                alive[second] = False
    left = int(alive.sum())
    pairs = left * (left - 1) // 2
    loose = max(min(LOOSE, EACH / max(total, 1)), rate)
    strict, may = ([_cut(each, pairs, share / len(tails)) for each in tails] for share in (rate, loose))
    threshold, low = (strict[1], may[1]) if len(tails) > 1 else (None, None)
    if low is not None and low >= 1 - 1e-6:  # the features of different images are the same
        threshold = low = None
    if threshold is not None:
        threshold = min(threshold, 1.0)
    bits, may_bits = (max(0, int(np.floor(-each[0])) - 2) for each in (strict, may))
    rule = Rule(bits, may_bits, threshold, low, agree)
    return rule, pairs, m - left


def _cut(values: tuple[np.ndarray, ...], pairs: int, rate: float) -> float:
    """The score that a share `rate` of all pairs exceeds; the largest of them are given.

    Where not even a tenth of a pair may, none of the given does: a fitted tail may end before them.
    """
    score = tail(values[0], rate * pairs / len(values[0]))
    return score if rate * pairs > 0.1 else max(score, float(np.nextafter(values[0].max(), np.inf)))


# ---------------------------------------------------------------- copies
def measured(
    rule: Rule,
    images: Images,
    found: Hashes,
    vectors: np.ndarray | None,
    embed: Embed | None,
    count: int,
    seed: int,
) -> dict[str, Share]:
    """How many copies of `count` images the rule finds, by kind; without `embed` by hash alone."""
    hits: dict[str, list[bool]] = {}
    chunk: list[copies.Copy] = []
    pictures = Pictures(images)

    def judge() -> None:
        of = np.array([each.of for each in chunk])
        keep = found.usable[of]
        seen = [each.pixels for each in chunk]
        perceptual = hashes.perceptual_hashes(np.stack([np.nan_to_num(hashes.picture(p)) for p in seen]))
        distance = hashes.distances(found.perceptual[of], perceptual)
        cosine = None
        if embed is not None and vectors is not None:
            cosine = (vectors[of] * unit(embed(seen))).sum(axis=1)
        hit = judged(
            rule, distance, cosine, lambda at: (pictures(of[at]), np.stack([small(seen[k]) for k in at]))
        )[0]
        for each, kept, value in zip(chunk, keep, hit):
            if kept:
                hits.setdefault(each.kind, []).append(bool(value))

    for copy in copies.made(images, count, seed):
        chunk.append(copy)
        if len(chunk) == BLOCK:
            judge()
            chunk.clear()
    if chunk:
        judge()
    return {kind: Share(sum(values), len(values)) for kind, values in hits.items()}


def judged(
    rule: Rule,
    distance: Int[np.ndarray, "p"],
    cosine: Float[np.ndarray, "p"] | None,
    pictures: Callable[[Int[np.ndarray, "q"]], tuple[np.ndarray, np.ndarray]],
) -> tuple[Bool[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Which pairs are duplicates, and the agreement of those that the hash left open (NaN of the others)."""
    agreement = np.full(len(distance), np.nan, np.float32)
    at = np.flatnonzero((distance > rule.hash_limit) & rule.possible(distance, cosine))
    if len(at):
        agreement[at] = align.agreement(*pictures(at))
    return rule.certain(distance, cosine) | (agreement >= rule.agreement), agreement
