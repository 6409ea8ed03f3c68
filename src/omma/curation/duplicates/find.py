"""Duplicates of a collection: the same bytes, the same pixels, and pairs that look the same."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from omma.core.progress import Progress
from omma.core.protocols import Images
from omma.core.words import count
from omma.curation.duplicates import hashes, rule
from omma.curation.duplicates.calibrate import FEW, Calibration
from omma.curation.duplicates.exact import Decoder, Same, same
from omma.curation.duplicates.groups import Quality, groups, qualities
from omma.curation.duplicates.hashes import Hashes
from omma.curation.duplicates.result import Found, Pair
from omma.curation.duplicates.rule import Embed, Pictures, Rule
from omma.features.extract import FeatureSet
from omma.ops.nearest import pairs_above, unit

COPIES = 200  # images that copies of each kind are made of
BLOCK = 4096  # pairs that are aligned at a time
ORDER = {"file": 0, "pixels": 1, "near": 2}


def find(
    images: Images,
    *,
    vectors: FeatureSet | None = None,
    embed: Embed | None = None,
    seed: int = 0,
    false_positives: float | None = None,
    copies: int = COPIES,
    thresholds: Rule | None = None,
    progress: Progress | None = None,
) -> Found:
    """Duplicates among all images, and which of them to keep.

    vectors: features of these images; without them hashes alone are searched. embed: features of a list of
    arrays [h, w, c] by the same model (`Model.embed`): with it copies of the images are made and embedded,
    so that `calibration` says what share of them is found. false_positives: share of the pairs of different
    images that hash and features may take for the same by themselves, in (0, 1); None: `usual_rate`.
    copies: of so many images; 0 measures nothing. thresholds: those found on another collection by the same
    model (`Found.rule`), for one of few images. progress: of hashing.
    Images of a test split are never proposed for removal.
    """
    if false_positives is not None and not 0 < false_positives < 1:
        raise ValueError(f"false_positives={false_positives}: must lie between 0 and 1")
    if copies < 0:
        raise ValueError(f"copies={copies}: must be 0 or more")
    found = hashes.hashes(images, progress)
    known = None if vectors is None else _unit(vectors, len(images))
    decoder, pictures = Decoder(images), Pictures(images)
    equal = same(found, decoder)
    rows = _compared(found, equal)
    rate = usual_rate(len(rows)) if false_positives is None else false_positives
    some = rule.sample(found, rows, known, seed)
    decides, pairs, aside = rule.chosen(some, pictures, rate, len(rows), seed)
    enough = len(rows) >= FEW or thresholds is not None
    decides = decides if thresholds is None else thresholds
    recall = rule.measured(decides, images, found, known, embed, copies, seed) if copies and enough else {}
    copied = max((each.n for each in recall.values()), default=0)
    calibration = Calibration(recall, rate, pairs, copied, aside) if enough else None
    near = tuple(pair for block in _near(rows, found, known, decides, pictures) for pair in block)
    exact = _exact(equal, quality := _qualities(images, equal, near, decoder))
    whole = sorted(exact + near, key=lambda pair: (ORDER[pair.kind], -_alike(pair), pair.a, pair.b))
    test = () if images.splits is None else np.flatnonzero(images.splits == "test").tolist()
    return Found(
        tuple(whole),
        groups(((pair.a, pair.b) for pair in near), quality, test, equal.classes),
        decides,
        calibration,
        found.bad,
        _notes(found, decides, known, embed, calibration, thresholds is not None),
    )


def usual_rate(n: int) -> float:
    """1e-5 of all pairs; of more than 1,000 images so few that one false pair comes on 200 images."""
    return min(1e-5, 0.01 / max(n, 1))


def _unit(vectors: FeatureSet, n: int) -> Float[np.ndarray, "n d"]:
    """A row of length 1 for each image of the collection; zeros where it has no features."""
    rows = unit(vectors.vectors)
    if len(rows) == n and (vectors.indices == np.arange(n)).all():
        return rows
    full = np.zeros((n, rows.shape[1]), np.float32)
    full[vectors.indices] = rows
    return full


def _compared(found: Hashes, equal: Same) -> Int[np.ndarray, "m"]:
    """Images that are compared by what they look like: those that show something, one of each class."""
    usable = found.usable.copy()
    for rows in equal.classes:
        usable[list(rows[1:])] = False
    return np.flatnonzero(usable)


def _near(
    rows: Int[np.ndarray, "m"], found: Hashes, known: np.ndarray | None, decides: Rule, pictures: Pictures
) -> Iterator[tuple[Pair, ...]]:
    """Pairs that look the same, a block at a time."""
    vectors = known if known is None or len(rows) == len(known) else known[rows]
    waiting = np.zeros((2, 0), np.int64)
    for a, b in _candidates(found.perceptual[rows], vectors, decides):
        waiting = np.concatenate([waiting, np.stack([rows[a], rows[b]])], axis=1)
        while waiting.shape[1] >= BLOCK:
            yield _judged(waiting[0, :BLOCK], waiting[1, :BLOCK], found, known, decides, pictures)
            waiting = waiting[:, BLOCK:]
    yield _judged(waiting[0], waiting[1], found, known, decides, pictures)


def _candidates(
    perceptual: np.ndarray, vectors: np.ndarray | None, decides: Rule
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs that hash or features find possible, each once."""
    for i, j, _ in hashes.near_pairs(perceptual, decides.hash_loose):
        yield i, j
    if vectors is not None and decides.loose is not None:
        for i, j, _ in pairs_above(vectors, decides.loose):
            further = hashes.distances(perceptual[i], perceptual[j]) > decides.hash_loose
            yield i[further], j[further]


def _judged(
    a: np.ndarray,
    b: np.ndarray,
    found: Hashes,
    known: np.ndarray | None,
    decides: Rule,
    pictures: Pictures,
) -> tuple[Pair, ...]:
    """Those of the pairs that are duplicates."""
    distance = hashes.distances(found.perceptual[a], found.perceptual[b])
    cosine = None if known is None else (known[a] * known[b]).sum(axis=1)
    hit, agreement = rule.judged(decides, distance, cosine, lambda at: (pictures(a[at]), pictures(b[at])))
    return tuple(
        Pair(
            int(a[k]),
            int(b[k]),
            "near",
            int(distance[k]),
            None if cosine is None else float(cosine[k]),
            None if np.isnan(agreement[k]) else float(agreement[k]),
        )
        for k in np.flatnonzero(hit)
    )


def _alike(pair: Pair) -> float:
    """What pairs of one kind are ordered by."""
    return pair.similarity if pair.similarity is not None else -float(pair.hash_distance or 0)


def _qualities(images: Images, equal: Same, near: Sequence[Pair], decoder: Decoder) -> dict[int, Quality]:
    """Of all images that have a duplicate; an image that can no longer be read counts as the smallest."""
    rows = {row for rows in equal.classes for row in rows} | {
        row for pair in near for row in (pair.a, pair.b)
    }
    shapes = {row: (0, 0) if (seen := decoder(row)) is None else seen[:2] for row in sorted(rows)}
    return qualities(images, sorted(rows), shapes)


def _exact(equal: Same, quality: dict[int, Quality]) -> tuple[Pair, ...]:
    """Of each class, the best image of the same bytes with its copies, and the best of all with these."""
    found: list[Pair] = []
    for rows in equal.classes:
        # a blank image has no hash
        distance = 0 if equal.hashes.usable[rows[0]] else None
        ranked = sorted(rows, key=lambda row: (*(-value for value in quality[row].order), row))
        first: dict[bytes, int] = {}  # of the same bytes, the best
        for row in ranked:
            content = equal.hashes.content[row]
            twin = None if content is None else first.setdefault(content, row)
            if twin is not None and twin != row:
                found.append(Pair(min(twin, row), max(twin, row), "file", distance))
            elif row != ranked[0]:
                found.append(Pair(min(ranked[0], row), max(ranked[0], row), "pixels", distance))
    return tuple(found)


def _notes(
    found: Hashes,
    decides: Rule,
    known: np.ndarray | None,
    embed: Embed | None,
    calibration: Calibration | None,
    given: bool,
) -> tuple[str, ...]:
    """What a reader must know; given: the thresholds are those of another collection."""
    notes: list[str] = []
    if found.blank.any():
        notes.append(f"{count(int(found.blank.sum()), 'blank image')}: compared by bytes and pixels alone")
    if known is None:
        notes.append("no model: copies that are much cropped or turned are missed")
    if calibration is None:
        notes.append(f"under {FEW} images to compare: thresholds are not calibrated, pixels decide")
        return tuple(notes)
    if given:
        notes.append("the thresholds are those of another collection")
    elif calibration.pairs * calibration.false_positives < 0.1:
        notes.append(
            f"{calibration.pairs:,} pairs are few for a rate of {calibration.false_positives:g}: "
            "the thresholds are extrapolated"
        )
    if known is not None and decides.threshold is None:
        notes.append("the model tells these images hardly apart: its features are not used")
    if known is not None and embed is None and calibration.copied:
        notes.append("recall is that of hashes alone: no model embeds the copies")
    return tuple(notes)
