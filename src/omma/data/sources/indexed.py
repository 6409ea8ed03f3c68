"""An index of images with labels, splits, captions and a table's columns; pixels are decoded on reading."""

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from omma.core.words import count
from omma.data.sources import identity, label_sets
from omma.data.sources.decode import as_channels
from omma.data.sources.identity import Identity
from omma.data.sources.readers import FEW, Arrays, Files, Store
from omma.data.sources.sound import Sounds
from omma.data.sources.values import Ranges
from omma.data.sources.video import Videos
from omma.data.sources.webdataset_files import Shards


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

    kind = "image"  # or "sound", of which the images are log-mel energies (data/sources/clips.py)

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
            subset.identity = replace(subset._files(), stats=known.stats[indices])
        return subset

    @property
    def encoded(self) -> bool:
        """Whether images are files to decode, rather than arrays or items of a data set."""
        return not (isinstance(self._store, Arrays) or getattr(self._store, "decoded", False))

    @property
    def folder(self) -> str | None:
        """The folder that paths are relative to; None where images are not files of their own."""
        store = self._files().store
        return store.root if isinstance(store, Files) else None

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
        files = self._files()
        if not isinstance(files.store, Files):
            return files
        return replace(files, stats=identity.stats(files.store.root, files.files().to_pylist()))

    def _files(self) -> Identity:
        """What is known of the images' identity without a look at the files."""
        if isinstance(self._store, Sounds | Videos):
            return Identity(*self._store.unwrapped(self._paths, self._where))
        return Identity(self._store, self._paths, self._where)

    def _fingerprint(self, stamp: str) -> str:
        columns = [self._where, self.labels, self.splits]
        columns += [self.label_sets] * (self.label_sets is not None)  # or fingerprints of 0.1 would change
        facts = f"{self.channels} {self.classes}"
        return identity.fingerprint(self._paths.to_pylist(), stamp, columns, facts, self.text)

    def describe(self) -> str:
        """One line for a person."""
        parts = [self._counted()]
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

    def _counted(self) -> str:
        return f"{count(len(self), 'image')}, {count(self.channels, 'channel')}"
