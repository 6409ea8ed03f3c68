"""From a listing of files to one of clips, each with the number of its tiles."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa

from omma.core.protocols import BadImage
from omma.core.words import count
from omma.data.sources.listing import Listing
from omma.data.sources.names import is_sound
from omma.data.sources.readers import Archive, Files
from omma.data.sources.sound import ALL, Sounds

FEW = 0.01  # of a source: files of the other kind that are left out, rather than the source refused
_THREADS = 16  # answers of network file systems are waited for


def with_tiles(listing: Listing, source: str) -> Listing:
    """The listing of clips whose headers can be read, if its files are sounds; a listing of images as it is.

    Raises ValueError for a source of images and sounds, unless one kind is under 1 %, which is left out.
    """
    sounds = np.array([is_sound(path) for path in listing.paths.to_pylist()], bool)
    if not sounds.any() or not isinstance(listing.store, Files | Archive):
        return listing
    files = listing.store
    listing, is_sounds = _one_kind(listing, sounds, source)
    if not is_sounds:
        return listing
    store, paths = Sounds(files), listing.paths.to_pylist()
    outer = np.zeros((len(paths), 0), np.int64) if listing.where is None else listing.where

    def tiles(row: int) -> int | str:
        try:
            return store.tiles(paths[row], outer[row] if outer.shape[1] else None)
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(_THREADS) as pool:
        numbers = list(pool.map(tiles, range(len(paths))))
    good = np.array([row for row, number in enumerate(numbers) if isinstance(number, int)], np.int64)
    bad = [(paths[row], number) for row, number in enumerate(numbers) if isinstance(number, str)]
    counts = np.array([numbers[row] for row in good.tolist()], np.int64)
    listing = restricted(listing, good, bad)
    where = np.column_stack([outer[good], np.full(len(good), ALL), counts])
    return replace(listing, store=store, where=where)


def _one_kind(listing: Listing, sounds: np.ndarray, source: str) -> tuple[Listing, bool]:
    """The listing with the files of one kind, and whether these are sounds."""
    n, more = int(sounds.sum()), 2 * int(sounds.sum()) >= len(sounds)
    if n == len(sounds):
        return listing, True
    few = sounds != more
    if few.sum() >= FEW * len(sounds):
        raise ValueError(
            f"{source}: {count(len(sounds) - n, 'image')} and {count(n, 'sound')} are in it, and a model "
            "learns from one kind; give a folder, a pattern such as FOLDER/**/*.wav or a table of one of them"
        )
    reason = "an image among sounds" if more else "a sound among images"
    bad = [(listing.paths[row].as_py(), reason) for row in np.flatnonzero(few).tolist()]
    return restricted(listing, np.flatnonzero(~few), bad), more


def restricted(listing: Listing, rows: np.ndarray, bad: list[tuple[str, str]]) -> Listing:
    """Some files of the listing; the others are skipped, and so are classes that had no others."""
    if not bad:
        return listing
    known, chosen = listing.annotations, listing.annotations.take(rows)
    if known.labels is not None and chosen.labels is not None:
        gone = np.setdiff1d(known.labels, [*chosen.labels.tolist(), -1])
        stay = np.setdiff1d(np.arange(len(known.classes)), gone)
        code = np.full(len(known.classes) + 1, -1)  # the last is for -1
        code[stay] = np.arange(len(stay))
        classes = tuple(known.classes[k] for k in stay)
        chosen = replace(chosen, labels=code[chosen.labels], classes=classes)
    return replace(
        listing,
        paths=listing.paths.take(pa.array(rows)),
        where=None if listing.where is None else listing.where[rows],
        annotations=chosen,
        skipped=sorted(listing.skipped + bad),
    )
