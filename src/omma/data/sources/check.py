"""Which images of a collection can be decoded; verdicts are cached, but for images that are inaccessible."""

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from omma.core.caches import cache_folder
from omma.core.progress import Progress
from omma.core.protocols import BadImage, Images, Inaccessible
from omma.core.random import local_order
from omma.data.sources.collection import none_readable
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.listing_cache import write_whole

CHECK_ALL = 20_000  # larger collections are checked by sample; training skips the bad images that it misses
CHECK_SAMPLE = 2_000


def verify(
    images: Images, indices: np.ndarray | None = None, progress: Progress | None = None
) -> list[tuple[int, str]]:
    """Decode images in threads; returns (index, reason) of the bad ones. progress: images done, and in all.

    JPEGs are decoded at 1/8 scale, which still reads every byte and so detects truncation.
    """
    todo = np.arange(len(images)) if indices is None else indices

    def check(chunk: np.ndarray) -> list[tuple[int, str]]:
        bad = []
        for i in chunk.tolist():
            try:
                images.read(i, at_least=1)
            except BadImage as error:
                bad.append((i, str(error)))
        return bad

    results, chunks = [], np.array_split(todo, max(1, len(todo) // 64))
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        for done, bad in zip(itertools.accumulate(map(len, chunks)), pool.map(check, chunks)):
            results += bad
            if progress:
                progress(done, len(todo))
    return sorted(results)


def _read_checked(file: Path) -> tuple[list[tuple[int, str]], list[int]] | None:
    """The bad images of an earlier check, and those that could not be accessed; None if not checked yet."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return [(int(i), str(why)) for i, why in record["bad"]], [int(i) for i in record["again"]]
    except (OSError, ValueError, TypeError, KeyError):  # damaged, too, or written before there was "again"
        return None


def _sample_to_check(images: IndexedImages) -> np.ndarray:
    """The images that are checked: all, or a seeded sample."""
    if len(images) <= CHECK_ALL:
        return np.arange(len(images))
    if images.blocks is None:
        return np.sort(np.random.default_rng(0).permutation(len(images))[:CHECK_SAMPLE])
    return np.sort(local_order(0, 0, images.blocks, 1)[:CHECK_SAMPLE])  # whole shards, not an image of each


def checked(
    images: IndexedImages, cache: Path | None = None, progress: Progress | None = None
) -> IndexedImages:
    """The images that can be decoded; the others are added to `skipped`.

    Above 20,000 images only a seeded sample of 2,000 is checked; training skips further bad ones. The result
    is cached by fingerprint, without what cannot be accessed now. Raises ValueError if none can be decoded.
    """
    file = (cache or cache_folder()) / f"checked-{images.fingerprint}.json"
    bad, again = _read_checked(file) or ([], None)
    if again is None or again:
        todo = _sample_to_check(images) if again is None else np.array(again)
        bad = sorted(bad + verify(images, todo, progress))
        again = [i for i, reason in bad if Inaccessible.is_reason(reason)]
        verdicts = [(i, reason) for i, reason in bad if not Inaccessible.is_reason(reason)]
        write_whole(file, json.dumps({"bad": verdicts, "again": again}).encode())
    named = [(images.path(i), reason) for i, reason in bad]
    if len(bad) == len(_sample_to_check(images)):
        raise ValueError(none_readable(images.source, len(images), named))
    if not bad:
        return images
    readable = images.subset(np.delete(np.arange(len(images)), [i for i, _ in bad]))
    readable.skipped += named
    return readable
