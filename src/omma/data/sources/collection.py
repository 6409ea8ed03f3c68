"""Open any collection of images as an index of paths, labels and splits; pixels are decoded on reading."""

import copy
import csv
import hashlib
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from omma.core.explain import translated
from omma.core.files import cache_folder
from omma.core.protocols import BadImage, Images, Inaccessible
from omma.core.random import local_order
from omma.data.sources.decode import as_channels
from omma.data.sources.labels import Annotations, encode
from omma.data.sources.listing import Listing, lister
from omma.data.sources.listing_cache import cache_key, recall, remember, write_whole
from omma.data.sources.readers import Arrays, Store, as_images
from omma.data.sources.webdataset_files import Shards, find
from omma.data.sources.webdataset_samples import list_shards

log = logging.getLogger(__name__)

CHANNEL_SAMPLE = 32  # images decoded to learn the number of channels
CHECK_ALL = 20_000  # larger collections are checked by sample; training skips the bad images that it misses
CHECK_SAMPLE = 2_000


class IndexedImages:
    """`Images` (see core/protocols.py for its members) whose pixels come from a store.

    skipped: (path, reason) of everything in the source that is not a usable image.
    text: each image's captions, where a table has them (data/sources/captions.py).
    """

    def __init__(
        self,
        store: Store,
        paths: pa.LargeStringArray,
        *,
        channels: int,
        where: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        splits: np.ndarray | None = None,
        text: pa.LargeListArray | None = None,
        skipped: Iterable[tuple[str, str]] = (),
        source: str = "",
    ) -> None:
        self.channels = channels
        self.labels = labels
        self.classes = classes
        self.splits = splits
        self.text = text
        self.skipped = list(skipped)
        self.source = source
        self._store = store
        self._paths = paths
        self._where = where

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

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
        subset._paths = self._paths.take(pa.array(indices))
        for name in ("_where", "labels", "splits"):
            column = getattr(self, name)
            setattr(subset, name, None if column is None else column[indices])
        subset.text = None if self.text is None else self.text.take(pa.array(indices))
        subset.skipped = list(self.skipped)
        return subset

    @property
    def encoded(self) -> bool:
        """Whether images are files to decode, rather than arrays."""
        return not isinstance(self._store, Arrays)

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
        return other

    @cached_property
    def fingerprint(self) -> str:
        """A hash of paths, labels, splits and captions, and of the files' sizes and modification times.

        Above 20,000 files, sizes and times are not read and only the paths count.
        """
        digest = hashlib.blake2b(digest_size=16)
        names: list[str] = self._paths.to_pylist()
        digest.update("\n".join(names).encode())
        digest.update(self._store.stamp(names).encode())
        for column in (self._where, self.labels, self.splits):
            digest.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
        digest.update(f"{self.channels} {self.classes}".encode())
        if self.text is not None:
            digest.update(self.text.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            digest.update("\n".join(each or "" for each in self.text.flatten().to_pylist()).encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """One line for a person."""
        parts = [f"{len(self):,} images, {self.channels} channel{'s' if self.channels > 1 else ''}"]
        if self.labels is not None:
            unlabelled = int((self.labels < 0).sum())
            parts.append(
                f"{len(self.classes)} classes" + (f" ({unlabelled:,} unlabelled)" * bool(unlabelled))
            )
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
        if labels is not None and not classes:
            labels, classes = encode(np.asarray(labels).tolist())
        super().__init__(
            Arrays(None, values),
            pa.array([f"{source}[{row}]" for row in range(len(values))], pa.large_string()),
            channels=values.shape[-1],
            where=np.arange(len(values))[:, None],
            labels=None if labels is None else np.asarray(labels, np.int64),
            classes=tuple(classes),
            splits=None if splits is None else np.asarray(splits, "U5"),
            source=source,
        )


# ---------------------------------------------------------------- open
def open_images(
    source: str | Path,
    cache: Path | None = None,
    check: Callable[[Annotations], None] = lambda annotations: None,
    tell: Callable[[str], None] = log.info,
) -> IndexedImages:
    """Index a folder, glob, archive, shards, manifest (.csv, .parquet, .jsonl), arrays or one image.

    Listings of folders and archives are cached in `cache` (default: `cache_folder()`) until one of the
    folders or the archive is modified. Overwriting a file in place leaves its folder's time unchanged, which
    is harmless, since only the path is cached. `check` gets labels, splits and captions before any image is
    decoded, and may raise. `tell` gets a line of text when listing takes long.
    Raises ValueError, in one line, if there is no usable image.
    """
    typed = str(source)
    # absolute, so that images can still be read after a change of the working directory
    source = typed if "://" in typed else os.path.abspath(os.path.expanduser(typed))
    memory = (cache or cache_folder()) / f"index-{cache_key(source)}.arrow"
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
            others = f" ({n} other files; {_first(listing.skipped)})" if n else ""
            raise ValueError(f"{typed}: no images in it{others}; give a folder, archive or list of images")
        check(listing.annotations)
        listing.channels, all_read = _count_channels(listing, typed)
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
        classes=listing.annotations.classes,
        splits=listing.annotations.splits,
        text=listing.annotations.text,
        skipped=listing.skipped,
        source=typed,
    )


def _count_channels(listing: Listing, source: str) -> tuple[int, bool]:
    """1 if all of a sample are grey, 3 with RGB among them, else the commonest; and were all accessible?"""
    n = len(listing.paths)
    spread = np.unique(np.linspace(0, n - 1, min(n, CHANNEL_SAMPLE)).astype(int))
    rest = np.random.default_rng(0).permutation(n)[:1000]  # only if none of the first can be read
    counts: Counter[int] = Counter()
    bad: list[tuple[str, str]] = []
    for k, i in enumerate([*spread, *rest]):
        if k >= len(spread) and counts:
            break
        path = listing.paths[int(i)].as_py()
        try:
            where = None if listing.where is None else listing.where[i]
            counts[listing.store.load(path, where, None, 1).shape[-1]] += 1
        except BadImage as error:
            bad.append((path, str(error)))
    if not counts:
        raise ValueError(_none_readable(source, n, bad))
    return 3 if set(counts) == {1, 3} else counts.most_common(1)[0][0], _accessible(bad)


def _accessible(skipped: list[tuple[str, str]]) -> bool:
    return not any(Inaccessible.is_reason(reason) for _, reason in skipped)


def _first(skipped: list[tuple[str, str]], n: int = 3) -> str:
    return "; ".join(f"{path}: {reason}" for path, reason in skipped[:n])


def _none_readable(source: str, n: int, bad: list[tuple[str, str]]) -> str:
    access = all(Inaccessible.is_reason(reason) for _, reason in bad)
    done, remedy = ("accessed", "permissions, disk and connection") if access else ("read", "the files")
    return f"{source}: none of {n:,} images can be {done} ({_first(bad)}); check {remedy}"


# ---------------------------------------------------------------- check
def verify(images: Images, indices: np.ndarray | None = None) -> list[tuple[int, str]]:
    """Decode images in threads; returns (index, reason) of the bad ones.

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

    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        return sorted(itertools.chain(*pool.map(check, np.array_split(todo, max(1, len(todo) // 64)))))


def _read_checked(file: Path) -> tuple[list[tuple[int, str]], list[int]] | None:
    """The bad images found before, and those that could not be accessed; None if not checked yet."""
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


def checked(images: IndexedImages, cache: Path | None = None) -> IndexedImages:
    """The images that can be decoded; the others are added to `skipped`.

    Above 20,000 images only a seeded sample of 2,000 is checked; training skips further bad ones. The result
    is cached by fingerprint, without what cannot be accessed now. Raises ValueError if none can be decoded.
    """
    file = (cache or cache_folder()) / f"checked-{images.fingerprint}.json"
    bad, again = _read_checked(file) or ([], None)
    if again is None or again:
        todo = _sample_to_check(images) if again is None else np.array(again)
        bad = sorted(bad + verify(images, todo))
        again = [i for i, reason in bad if Inaccessible.is_reason(reason)]
        verdicts = [(i, reason) for i, reason in bad if not Inaccessible.is_reason(reason)]
        write_whole(file, json.dumps({"bad": verdicts, "again": again}).encode())
    named = [(images.path(i), reason) for i, reason in bad]
    if len(bad) == len(_sample_to_check(images)):
        raise ValueError(_none_readable(images.source, len(images), named))
    if not bad:
        return images
    readable = images.subset(np.delete(np.arange(len(images)), [i for i, _ in bad]))
    readable.skipped += named
    return readable


def write_skipped(file: str | Path, skipped: Iterable[tuple[str, str]]) -> None:
    """Write a .csv with the columns path and reason."""
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "reason"))
        writer.writerows(skipped)
