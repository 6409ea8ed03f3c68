"""Open any collection of images as an index of paths, labels and splits; pixels are decoded on reading."""

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from omma.core.caches import cache_folder
from omma.core.explain import translated
from omma.core.protocols import BadImage, Images, Inaccessible
from omma.core.words import count
from omma.data.sources import decode_dicom, held, label_sets
from omma.data.sources.clips import Clips, in_tiles, whole
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.labels import Annotations
from omma.data.sources.layout import LabelDepth, relabelled
from omma.data.sources.list_paths import LIST, are_paths, list_paths
from omma.data.sources.list_sounds import with_tiles
from omma.data.sources.list_videos import with_frames
from omma.data.sources.lister import lister
from omma.data.sources.listing import Listing
from omma.data.sources.listing_cache import cache_key, recall, remember
from omma.data.sources.readers import Arrays, EncodedStore, as_images
from omma.data.sources.sound import Sounds, first_tile
from omma.data.sources.values import Ranges, array_ranges, thin, value_ranges
from omma.data.sources.webdataset_files import Shards, find
from omma.data.sources.webdataset_samples import list_shards

log = logging.getLogger(__name__)

Check = Callable[[Annotations | IndexedImages], None]
CHANNEL_SAMPLE = 32  # images decoded to learn the number of channels


class ArrayImages(IndexedImages):
    """An array in memory as `Images`; see `as_images` for the accepted shapes."""

    def __init__(
        self,
        array: np.ndarray,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        splits: np.ndarray | None = None,
        source: str = "array",
    ) -> None:
        values = as_images(np.asarray(array), source)
        for name, column in (("labels", labels), ("splits", splits)):
            if column is not None and len(column) != len(values):
                raise ValueError(
                    f"{source}: {len(column)} {name} for {len(values)} images; give one an image"
                )
        notes, sets = (), None
        if labels is not None and (not classes or np.ndim(labels) == 2):
            read = label_sets.from_array(np.asarray(labels))
            labels, notes, sets = read.labels, read.notes, read.label_sets
            classes = classes if sets is not None and len(classes) == sets.shape[1] else read.classes
        super().__init__(
            Arrays(None, values),
            pa.array([f"{source}[{row}]" for row in range(len(values))], pa.large_string()),
            channels=values.shape[-1],
            where=np.arange(len(values))[:, None],
            labels=None if labels is None else np.asarray(labels, np.int64),
            label_sets=sets,
            classes=tuple(classes),
            splits=None if splits is None else np.asarray(splits, "U5"),
            source=source,
            notes=notes,
            ranges=array_ranges(values),
        )


# ---------------------------------------------------------------- open
def open_images(
    source: str | Path,
    cache: Path | None = None,
    check: Check = lambda annotations: None,
    tell: Callable[[str], None] = log.info,
    label_depth: LabelDepth | None = None,
) -> IndexedImages:
    """Index a folder, glob, archive, shards, manifest (.csv, .parquet, .jsonl), arrays or one image.

    Listings of folders and archives are cached in `cache` (default: `cache_folder()`) until one of the
    folders or the archive is modified. Overwriting a file in place leaves its folder's time unchanged, which
    is harmless, since only the path is cached. `check` gets labels, splits and captions before any image is
    decoded, and may raise. `tell` gets a line of text when listing takes long. `label_depth` says
    which folder names the class (see `layout.read_layout`).
    Raises ValueError, in one line, if there is no usable image.
    """
    typed = str(source)
    # absolute, so that images can still be read after a change of the working directory
    source = typed if "://" in typed else os.path.abspath(os.path.expanduser(typed))
    memory = (cache or cache_folder()) / f"index-{cache_key(source, label_depth)}.arrow"
    shards = find(source, typed)
    store = None if shards is None else Shards(shards, str((cache or cache_folder()) / "shards"))
    if store is not None:
        list_source, cached = (lambda _: list_shards(store, tell)), True
    else:
        list_source, cached = lister(source, typed)
    listing = recall(memory, source, store) if cached else None
    if listing is None:
        with translated(typed):
            listing = list_source(source)
        if not len(listing.paths):
            n = len(listing.skipped)
            others = f" ({count(n, 'other file')}; {_first(listing.skipped)})" if n else ""
            raise ValueError(f"{typed}: no images in it{others}; give a folder, archive or list of images")
        if label_depth is not None:
            listing.annotations = relabelled(listing.annotations, listing.paths, label_depth)
        listing, all_read = _completed(listing, typed, check)
        if cached and all_read and _accessible(listing.skipped):
            remember(memory, source, listing, None if store is None else store.stamp([]))
    else:
        check(listing.annotations)
    return _collection(listing, typed)


def open_list(
    paths: Sequence[str | os.PathLike[str]],
    label_depth: LabelDepth | None = None,
    check: Check = lambda annotations: None,
) -> IndexedImages:
    """Index image files, in this order, and all in the folders among them; folders name classes as usual.

    Raises ValueError, in one line, if there is no usable image, or an archive or table is among the paths.
    """
    listing = list_paths([os.fspath(path) for path in paths], label_depth)
    if not len(listing.paths):
        raise ValueError(
            f"{LIST}: no images in it ({_first(listing.skipped)}); give files and folders of images"
        )
    return _collection(_completed(listing, LIST, check)[0], LIST)


def _completed(listing: Listing, typed: str, check: Check) -> tuple[Listing, bool]:
    """The listing with tiles, frames, channels and ranges; and whether all of a sample could be accessed."""
    files, listing = len(listing.paths), with_frames(with_tiles(listing, typed))
    if not len(listing.paths):
        raise ValueError(none_readable(typed, files, listing.skipped))
    check(listing.annotations)
    listing.channels, listing.ranges, all_read = _sampled(listing, typed)
    if notes := decode_dicom.notes(_may_be_dicom(listing)):
        listing.annotations = replace(listing.annotations, notes=(*listing.annotations.notes, *notes))
    return listing, all_read


def _may_be_dicom(listing: Listing) -> Iterator[bytes]:
    """The content of a sample's files that may be DICOM by their names."""
    for i in _spread(len(listing.paths)):
        path = listing.paths[int(i)].as_py()
        if isinstance(listing.store, EncodedStore) and decode_dicom.may_be(path):
            with contextlib.suppress(BadImage):
                yield listing.store.content(path, None if listing.where is None else listing.where[i])


def _collection(listing: Listing, typed: str) -> IndexedImages:
    sounds = isinstance(listing.store, Sounds)
    images = (Clips if sounds else IndexedImages)(
        listing.store,
        listing.paths,
        channels=listing.channels,
        where=listing.where,
        labels=listing.annotations.labels,
        label_sets=listing.annotations.label_sets,
        classes=listing.annotations.classes,
        splits=listing.annotations.splits,
        text=listing.annotations.text,
        skipped=listing.skipped,
        notes=listing.annotations.notes,
        source=typed,
        ranges=listing.ranges,
        columns=listing.annotations.columns,
    )
    return in_tiles(images)


def indexed(
    source: Any,
    check: Check = lambda annotations: None,
    tell: Callable[[str], None] = log.info,
    label_depth: LabelDepth | None = None,
) -> IndexedImages:
    """Whatever a user gives as images: a path, paths, arrays, pictures, a data set or an open collection.

    The arguments are those of `open_images`. Raises ValueError, in one line, for anything else, and for a
    `label_depth` of what has no folders.
    """
    if isinstance(source, str | os.PathLike):
        return open_images(os.fspath(source), check=check, tell=tell, label_depth=label_depth)
    if are_paths(source):
        return in_tiles(open_list(list(source), label_depth, check))
    if label_depth is not None:
        raise ValueError("label_depth is for a source that is not open yet: give it to open_images")
    if not isinstance(source, IndexedImages):
        array = held.batch(source)
        source = held.collected(source) if array is None else ArrayImages(array)
    check(source)
    return source


def opened(images: Any, label_depth: LabelDepth | None = None) -> Images:
    """A collection as it is, or the one that a source names or a program holds (`indexed`).

    Of sounds each row is a clip; `open_images` has a row for each of its tiles (data/sources/clips.py).

    Raises ValueError for a `label_depth` of a source that is no folder.
    """
    if not isinstance(images, Images) or label_depth is not None:
        images = indexed(images, label_depth=label_depth)
    return whole(images)


def _sampled(listing: Listing, source: str) -> tuple[int, Ranges, bool]:
    """Channels of a sample (3 if grey and RGB mix, else the most frequent number), and its values' ranges.

    And whether all of it could be accessed, so that both will be the same next time.
    """
    n = len(listing.paths)
    spread = _spread(n)
    rest = np.random.default_rng(0).permutation(n)[:1000]  # only if none of the first can be read
    counts: Counter[int] = Counter()
    pixels: list[np.ndarray] = []
    bad: list[tuple[str, str]] = []
    for k, i in enumerate([*spread, *rest]):
        if k >= len(spread) and counts:
            break
        path = listing.paths[int(i)].as_py()
        try:
            where = None if listing.where is None else listing.where[i]
            if isinstance(listing.store, Sounds):
                path, where = first_tile(path, where)
            image = listing.store.load(path, where, None, 1)
            counts[image.shape[-1]] += 1
            pixels.append(thin(image)[None])
        except BadImage as error:
            bad.append((path, str(error)))
    if not counts:
        raise ValueError(none_readable(source, n, bad))
    channels = 3 if set(counts) == {1, 3} else counts.most_common(1)[0][0]
    return channels, value_ranges(pixels), _accessible(bad)


def _spread(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, CHANNEL_SAMPLE)).astype(int))


def _accessible(skipped: list[tuple[str, str]]) -> bool:
    return not any(Inaccessible.is_reason(reason) for _, reason in skipped)


def _first(skipped: list[tuple[str, str]], n: int = 3) -> str:
    return "; ".join(f"{path}: {reason}" for path, reason in [*dict.fromkeys(skipped)][:n])


def named(source: Any) -> str:
    """How a message names a source."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    known = getattr(source, "source", None)
    return known if isinstance(known, str) else type(source).__name__


def none_readable(source: str, n: int, bad: list[tuple[str, str]]) -> str:
    """The message that none of n images is usable, with the first reasons."""
    access = all(Inaccessible.is_reason(reason) for _, reason in bad)
    done, remedy = ("accessed", "permissions, disk and connection") if access else ("read", "the files")
    return f"{source}: none of {count(n, 'image')} can be {done} ({_first(bad)}); check {remedy}"
