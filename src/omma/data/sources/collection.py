"""Open any collection of images as an index of paths, labels and splits; pixels are decoded on reading."""

import copy
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from omma.core.caches import cache_folder
from omma.core.explain import translated
from omma.core.protocols import BadImage, Images, Inaccessible
from omma.core.words import count
from omma.data.sources import identity, label_sets, pictures
from omma.data.sources.decode import as_channels
from omma.data.sources.identity import Identity
from omma.data.sources.labels import Annotations
from omma.data.sources.layout import LabelDepth, relabelled
from omma.data.sources.listing import Listing, lister
from omma.data.sources.listing_cache import cache_key, recall, remember
from omma.data.sources.readers import FEW, Arrays, Files, Store, as_images
from omma.data.sources.values import Ranges, array_ranges, thin, value_ranges
from omma.data.sources.webdataset_files import Shards, find
from omma.data.sources.webdataset_samples import list_shards

log = logging.getLogger(__name__)

CHANNEL_SAMPLE = 32  # images decoded to learn the number of channels


class IndexedImages:
    """`Images` (see core/protocols.py for its members) whose pixels come from a store.

    label_sets: of images with several labels each, instead of `labels`; int8 [n, k]: 1 applies, 0 does not,
    -1 is not known (data/sources/label_sets.py).
    skipped: (path, reason) of everything in the source that is not a usable image.
    text: each image's captions, where a table has them (data/sources/captions.py).
    ranges: of a sample's values (data/sources/values.py); None: not sampled yet.
    notes: what to know of how labels, splits and captions were read. columns: texts and numbers of a table.
    split_name: what the split is, if it is not the collection's own.
    """

    def __init__(
        self,
        store: Store,
        paths: pa.LargeStringArray,
        *,
        channels: int,
        where: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        label_sets: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        splits: np.ndarray | None = None,
        text: pa.LargeListArray | None = None,
        skipped: Iterable[tuple[str, str]] = (),
        notes: Iterable[str] = (),
        source: str = "",
        ranges: Ranges | None = None,
        columns: pa.Table | None = None,
    ) -> None:
        self.channels = channels
        self.ranges = ranges
        self.labels = labels
        self.label_sets = label_sets
        self.classes = classes
        self.splits = splits
        self.text = text
        self.skipped = list(skipped)
        self.notes = tuple(notes)
        self.source = source
        self.columns = columns
        self.split_name = ""
        self._store = store
        self._paths = paths
        self._where = where

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"columns": None}  # only what chooses parts of a collection reads them

    def path(self, i: int) -> str:
        return self._paths[int(i)].as_py()

    def read(self, i: int, at_least: int | None = None) -> np.ndarray:
        where = None if self._where is None else self._where[i]
        return as_channels(self._store.load(self.path(i), where, self.channels, at_least), self.channels)

    def content(self, i: int) -> bytes:
        """The file's bytes, before decoding; only for `encoded` collections. Raises BadImage."""
        where = None if self._where is None else self._where[i]
        return self._store.content(self.path(i), where)  # type: ignore[attr-defined]  # of stores of files

    def subset(self, indices: np.ndarray) -> "IndexedImages":
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        indices = indices.astype(np.int64)  # an empty list has floats
        subset = copy.copy(self)
        subset.__dict__.pop("fingerprint", None)
        known = subset.__dict__.pop("identity", None)
        subset._paths = self._paths.take(pa.array(indices))
        for name in ("_where", "labels", "label_sets", "splits"):
            column = getattr(self, name)
            setattr(subset, name, None if column is None else column[indices])
        subset.text = None if self.text is None else self.text.take(pa.array(indices))
        subset.columns = None if self.columns is None else self.columns.take(pa.array(indices))
        subset.skipped = list(self.skipped)
        if known is not None and known.stats is not None:
            subset.identity = Identity(subset._store, subset._paths, subset._where, known.stats[indices])
        return subset

    @property
    def encoded(self) -> bool:
        """Whether images are files to decode, rather than arrays."""
        return not isinstance(self._store, Arrays)

    @property
    def folder(self) -> str | None:
        """The folder that paths are relative to; None where images are not files of their own."""
        return self._store.root if isinstance(self._store, Files) else None

    @property
    def blocks(self) -> np.ndarray | None:
        """The shard of each image (int64 [n]), or None; images of a shard are best read together."""
        if not isinstance(self._store, Shards):
            return None
        assert self._where is not None
        return self._where[:, 0]

    def fetch(self, block: int) -> None:
        """Download a shard unless it is on this machine. Raises ValueError."""
        if isinstance(self._store, Shards):
            self._store.fetch(block)

    def stored(self, store: Store, where: np.ndarray) -> "IndexedImages":
        """The same collection with its pixels read from another store."""
        other = self.subset(np.arange(len(self)))
        other._store, other._where = store, where
        other.__dict__.pop("identity", None)
        return other

    @cached_property
    def fingerprint(self) -> str:
        """A hash of paths, labels, splits and captions, and of the files' sizes and modification times."""
        return self._fingerprint(self.identity.stamp())

    @property
    def fingerprint_of_0_1(self) -> str:
        """The fingerprint as omma 0.1 computed it: above 20,000 files only their paths counted."""
        few = len(self) <= FEW or self.identity.stats is None
        return self.fingerprint if few else self._fingerprint(self._store.stamp([]))

    @cached_property
    def identity(self) -> Identity:
        """What identifies the images: paths, sizes, times and content."""
        files = self._store if isinstance(self._store, Files) else None
        stats = None if files is None else identity.stats(files.root, self._paths.to_pylist())
        return Identity(self._store, self._paths, self._where, stats)

    def _fingerprint(self, stamp: str) -> str:
        columns = [self._where, self.labels, self.splits]
        columns += [self.label_sets] * (self.label_sets is not None)  # or fingerprints of 0.1 would change
        facts = f"{self.channels} {self.classes}"
        return identity.fingerprint(self._paths.to_pylist(), stamp, columns, facts, self.text)

    def describe(self) -> str:
        """One line for a person."""
        parts = [f"{count(len(self), 'image')}, {count(self.channels, 'channel')}"]
        if self.labels is not None or self.label_sets is not None:
            sets, classes = self.label_sets, count(len(self.classes), "class", "classes")
            classes += ", several labels an image" * (sets is not None)
            unlabelled = int(((self.labels < 0) if sets is None else label_sets.unlabelled(sets)).sum())  # pyright: ignore
            parts.append(classes + f" ({unlabelled:,} unlabelled)" * bool(unlabelled))
        if self.splits is not None:
            parts.append(
                " and ".join(f"{n:,} {side}" for side, n in sorted(Counter(self.splits.tolist()).items()))
            )
        if self.skipped:
            parts.append(f"{len(self.skipped):,} skipped")
        return f"{Path(self.source).name or self.source}: " + ", ".join(parts)


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
    check: Callable[[Annotations], None] = lambda annotations: None,
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
        check(listing.annotations)
        listing.channels, listing.ranges, all_read = _sampled(listing, typed)
        if cached and all_read and _accessible(listing.skipped):
            remember(memory, source, listing, None if store is None else store.stamp([]))
    else:
        check(listing.annotations)
    return IndexedImages(
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


def opened(images: Any, label_depth: LabelDepth | None = None) -> Images:
    """A collection as it is, or the one that a source names or a program holds (`pictures.collected`).

    Raises ValueError for a `label_depth` of a source that is no folder.
    """
    if isinstance(images, str | os.PathLike):
        return open_images(os.fspath(images), label_depth=label_depth)
    if not isinstance(images, Images):
        images = pictures.collected(images)
    if label_depth is not None:
        raise ValueError("label_depth is for a source that is not open yet: give it to open_images")
    return images


def _sampled(listing: Listing, source: str) -> tuple[int, Ranges, bool]:
    """Channels of a sample (3 if grey and RGB mix, else the most frequent number), and its values' ranges.

    And whether all of it could be accessed, so that both will be the same next time.
    """
    n = len(listing.paths)
    spread = np.unique(np.linspace(0, n - 1, min(n, CHANNEL_SAMPLE)).astype(int))
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
            image = listing.store.load(path, where, None, 1)
            counts[image.shape[-1]] += 1
            pixels.append(thin(image)[None])
        except BadImage as error:
            bad.append((path, str(error)))
    if not counts:
        raise ValueError(none_readable(source, n, bad))
    channels = 3 if set(counts) == {1, 3} else counts.most_common(1)[0][0]
    return channels, value_ranges(pixels), _accessible(bad)


def _accessible(skipped: list[tuple[str, str]]) -> bool:
    return not any(Inaccessible.is_reason(reason) for _, reason in skipped)


def _first(skipped: list[tuple[str, str]], n: int = 3) -> str:
    return "; ".join(f"{path}: {reason}" for path, reason in [*dict.fromkeys(skipped)][:n])


def none_readable(source: str, n: int, bad: list[tuple[str, str]]) -> str:
    """The message that none of n images is usable, with the first reasons."""
    access = all(Inaccessible.is_reason(reason) for _, reason in bad)
    done, remedy = ("accessed", "permissions, disk and connection") if access else ("read", "the files")
    return f"{source}: none of {count(n, 'image')} can be {done} ({_first(bad)}); check {remedy}"
