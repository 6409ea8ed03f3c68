"""Copies as findings: within a collection, between its parts, and of another collection's images."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from omma.core.progress import Progress
from omma.core.protocols import Images
from omma.curation import duplicates
from omma.curation.duplicates import Found, Joined, Pair
from omma.curation.duplicates.hashes import BITS
from omma.curation.findings import Finding, label_of, split_of
from omma.curation.quality import Judged
from omma.features.extract import FeatureSet

MADE = 50  # images that copies of each kind are made of, to say what share is found
HOW = {"file": "the same file", "pixels": "the same pixels", "near": "it looks the same"}


def find(
    images: Images, features: FeatureSet | None, embed: Any, seed: int, progress: Progress | None
) -> tuple[Judged, Int[np.ndarray, "n"]]:
    """Copies within the collection, and a number for each image that it shares with its copies.

    features: of a model; None: hashes alone decide. embed: what embeds arrays by the same model.
    """
    found = duplicates.find(images, vectors=features, embed=embed, seed=seed, copies=MADE, progress=progress)
    how = _threshold(found)
    judged = Judged(tuple(_findings(images, found)), {"duplicate": how}, found.notes)
    return judged, connected(found, len(images))


def find_against(
    images: Images,
    others: Images,
    features: FeatureSet | None,
    of_others: FeatureSet | None,
    seed: int,
    progress: Progress | None,
) -> Judged:
    """Images that are copies of another collection's; features: of both by one model, or None."""
    both = None
    if features is not None and of_others is not None:
        vectors = np.concatenate([features.vectors, of_others.vectors])
        both = FeatureSet(vectors, np.concatenate([features.indices, len(images) + of_others.indices]))
    joined: Any = Joined(images, others)
    found = duplicates.find(joined, vectors=both, seed=seed, copies=0, progress=progress)
    seen, findings = set[int](), list[Finding]()
    for pair in duplicates.across(found, joined.splits):
        if pair.a not in seen:
            seen.add(pair.a)
            findings.append(_finding(joined, "leakage", pair.a, pair, elsewhere=len(images)))
    return Judged(tuple(findings), {"leakage": _threshold(found)}, ())


def connected(found: Found, n: int) -> Int[np.ndarray, "n"]:
    """Numbers that images share with all that they are chained to: a fold must hold all of them, or none."""
    a, b = (np.array([getattr(pair, side) for pair in found.pairs], np.int64) for side in "ab")
    chained = connected_components(coo_array((np.ones(len(a)), (a, b)), (n, n)), directed=False)[1]
    return chained.astype(np.int64)


def _findings(images: Images, found: Found) -> Iterator[Finding]:
    """Each image that would go, beside the one that stays; and copies within the test part, which stay."""
    pairs = {(pair.a, pair.b): pair for pair in found.pairs}
    listed = set[int]()
    for group in found.groups:
        for row in group.others:
            pair = pairs.get((min(row, group.kept), max(row, group.kept))) or _through(pairs, row, group.kept)
            leaks = split_of(images, row) != split_of(images, group.kept)
            yield _finding(images, "leakage" if leaks else "duplicate", row, pair, f"kept: {group.why}")
            listed.add(row)
    for pair in found.pairs:
        if pair.b not in listed and split_of(images, pair.a) == split_of(images, pair.b) == "test":
            listed.add(pair.b)
            yield _finding(images, "duplicate", pair.b, pair, "both stay: of the test split")


def _through(pairs: dict[tuple[int, int], Pair], row: int, kept: int) -> Pair:
    """A pair for two images of one class of equals, each of which is paired with its best alone."""
    kinds = {pair.kind for pair in pairs.values() if row in (pair.a, pair.b)}
    kind = "pixels" if "pixels" in kinds and "near" not in kinds else "file" if kinds == {"file"} else "near"
    return Pair(min(row, kept), max(row, kept), kind)


def _finding(
    images: Images, kind: str, row: int, pair: Pair, why: str = "", elsewhere: int | None = None
) -> Finding:
    other = pair.b if pair.a == row else pair.a
    facts = [HOW[pair.kind]]
    if pair.kind == "near":
        facts += [f"cosine {pair.similarity:.3f}"] if pair.similarity is not None else []
        facts += [f"hash differs by {pair.hash_distance} bits"] if pair.hash_distance is not None else []
    own, its = (label_of(images, each) if images.labels is not None else "" for each in (row, other))
    facts += [f"labels differ: {own}, {its}"] if own and its and own != its else []
    alike = 1 - (pair.hash_distance or 0) / BITS if pair.similarity is None else pair.similarity
    score = alike if pair.kind == "near" else 1.0
    moved = elsewhere is not None
    return Finding(
        row, kind, score, "; ".join([*facts, *filter(None, [why])]), related=images.path(other),
        related_row=other - (elsewhere or 0), elsewhere=moved,
    )  # fmt: skip


def _threshold(found: Found) -> str:
    """What decides, and what share of copies it finds."""
    text = "the same bytes or pixels"
    if found.hash_limit >= 0:  # below, no difference tells these images from copies
        text += f", or hashes that differ by at most {found.hash_limit} of {BITS} bits"
    if found.threshold is not None:
        text += f", or features whose cosine is {found.threshold:.3f} or more"
    text += ", and pixels that coincide where that is not enough"
    known = found.calibration
    if known is None:
        return text
    text += f"; set for {known.false_positives:g} wrong pairs among {known.pairs:,} of different images"
    if known.copied:
        share = known.overall
        text += f"; of {share.n:,} copies made of {known.copied} of these images, {share.value:.1%} are found"
    return text
