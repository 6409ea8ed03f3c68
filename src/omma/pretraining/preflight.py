"""What is wrong with a run's images, as far as seconds tell: said before training, and nothing is changed.

`omma clean` looks at all images and at everything; this looks at what the run has recorded of them anyway,
and at a sample.
"""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from omma.core.protocols import BadImage
from omma.core.words import count
from omma.curation import quality
from omma.data.sources import identity
from omma.data.sources.indexed import IndexedImages
from omma.pretraining.data import Data
from omma.pretraining.events import Note, Stage
from omma.pretraining.run import Run
from omma.pretraining.setup import Setup

SAMPLE = 256  # images that are looked at
SECONDS = 1.5  # that looking takes at most, after the first images
STEP = 32  # images between two looks at the clock
CONFIRMED = 64  # pairs of large files that are read in full
SHARE = 0.01  # of the sample, from which on a fault is reported
SMALL = 0.1  # likewise, for images smaller than what the network sees


def tell(setup: Setup, run: Run) -> None:
    """Report what is found of the images of a run whose folder has just been claimed."""
    setup.request.listen(Stage("looking at images"))
    record, size = run.folder.path / identity.RECORD, setup.choice.image_size
    for note in notes(setup.data, record, size, setup.request.seed):
        setup.request.listen(Note(note))


def notes(data: Data, record: Path, image_size: int, seed: int = 0) -> list[str]:
    """Lines on copies among the images, leakage, and faults in a sample; none where nothing is found.

    record: of the images' content, which the run has just written. image_size: that the network sees.
    """
    found = [*_copies(data, record), *_faults(data.source.subset(data.training), image_size, seed)]
    if found:
        found.append(f"omma clean {data.source.source} --out findings.csv lists what is wrong, and shows it")
    return found


# ---------------------------------------------------------------- copies
def _copies(data: Data, record: Path) -> Iterator[str]:
    stored = identity.read(record)
    if stored is None:
        return
    table, source = stored[0], data.source
    pairs = _equal(table, source)
    training = np.zeros(len(source), bool)
    training[data.training] = True
    known = len(table) - table["content"].null_count
    of = f"of {count(known, 'image')}" + (", a sample" if known < len(table) else "")
    again = [(a, b) for a, b in pairs if training[a] and training[b]]
    if again:
        first = f"{source.path(again[0][1])} is {source.path(again[0][0])}"
        yield f"copies among the images to train on: {len(again):,} {of} (the first: {first})"
    splits = source.splits
    leaks = [] if splits is None else [(a, b) for a, b in pairs if training[a] and splits[b] == "test"]
    if leaks:
        first = f"{source.path(leaks[0][1])} is {source.path(leaks[0][0])}"
        yield (
            f"leakage: {count(len(leaks), 'test image is', 'test images are')} also among those to train on, "
            f"{of} (the first: {first}); scores on them flatter"
        )


def _equal(table: pa.Table, source: IndexedImages) -> list[tuple[int, int]]:
    """Each image that has the content of an earlier one, with that one; a test image with one to train on."""
    content, sizes = table["content"].combine_chunks(), table["size"].to_numpy()
    rows = np.flatnonzero(content.is_valid().to_numpy(zero_copy_only=False))
    values = content.take(pa.array(rows)).to_numpy(zero_copy_only=False)
    trained = table["trained"].to_numpy(zero_copy_only=False)[rows]
    order = np.lexsort((rows, ~trained, values))  # those to train on first
    ordered, pairs, read = rows[order], list[tuple[int, int]](), Counter[str]()
    first = ordered[0] if len(rows) else 0
    for k in range(1, len(rows)):
        if values[order[k]] != values[order[k - 1]]:
            first = ordered[k]
            continue
        if sizes[ordered[k]] < 0 or sizes[ordered[k]] > 2 * identity.EDGE:  # the middle was not read
            read["pairs"] += 1
            if read["pairs"] > CONFIRMED or not _same(source, int(first), int(ordered[k])):
                continue
        pairs.append((int(first), int(ordered[k])))
    return sorted(pairs, key=lambda pair: pair[1])


def _same(source: IndexedImages, a: int, b: int) -> bool:
    try:
        if source.encoded and source.kind == "image":  # two tiles of a sound have one file
            return source.content(a) == source.content(b)
        return bool(np.array_equal(source.read(a), source.read(b)))
    except BadImage:
        return False


# ---------------------------------------------------------------- a sample
def _faults(images: IndexedImages, image_size: int, seed: int) -> Iterator[str]:
    rows = np.random.default_rng((seed, 0x9F1)).permutation(len(images))[:SAMPLE]
    looked, faults, bad, sides = 0, Counter[str](), list[tuple[int, str]](), list[int]()
    measured = _measured(images, rows)
    for part in measured:
        looked += len(part.rows) + len(part.bad)
        bad += part.bad
        sides += part.sizes.min(1).tolist()
        faults["blank"] += int((quality.contrasts(part) <= quality.CONSTANT).sum())
    of = f"of {count(looked, 'image')} looked at"
    if bad:
        row, why = bad[0]
        yield f"cannot be read: {len(bad):,} {of} (the first: {images.path(row)}: {why})"
    if faults["blank"] >= max(1, SHARE * looked):
        yield f"blank: {faults['blank']:,} {of}"
    small = sum(side < image_size for side in sides)
    if small >= SMALL * max(looked, 1) and small:
        yield f"smaller than the {image_size} px that the network sees: {small:,} {of}; they are enlarged"


def _measured(images: IndexedImages, rows: Int[np.ndarray, "n"]) -> Iterator[quality.Measures]:
    """Measures of the rows, a few at a time, until the time is up."""
    end = time.monotonic() + SECONDS
    for at in range(0, len(rows), STEP):
        yield quality.measure(images, rows[at : at + STEP])
        if time.monotonic() > end:
            return
