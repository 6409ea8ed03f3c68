"""Which images a collection holds: a record of their paths, sizes, times and content, and what has changed.

A record is a table with the columns path, size (bytes; -1: unknown), time (of modification, ns; 0: unknown),
content (a hash of size and first and last 64 KiB; null where it was not read) and trained (whether a run
trains on it). Content is read of all images of up to 20,000, and of a seeded sample of 2,000 of more.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from omma.core import files
from omma.core.protocols import BadImage
from omma.core.words import count
from omma.data.sources.readers import Archive, EncodedStore, Files, Store
from omma.data.sources.webdataset_files import Shards

RECORD = "images.parquet"  # of a run folder
ALL = 20_000  # images up to which the content of each is read
SAMPLE = 2_000  # images whose content is read of more
EDGE = 1 << 16  # bytes at either end of a file that identify its content
_CHUNK = 4096  # files that a thread asks for at a time
_THREADS = 16  # answers of network file systems are waited for


def stats(root: str, paths: Sequence[str]) -> Int[np.ndarray, "n 2"]:
    """Size in bytes and time of modification in ns of each file; -1 and 0 where there is none to ask."""
    chunks = [paths[at : at + _CHUNK] for at in range(0, len(paths), _CHUNK)]
    if len(chunks) < 2:
        answers = [_stats(root, chunk) for chunk in chunks]
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            answers = list(pool.map(partial(_stats, root), chunks))
    return np.concatenate(answers) if answers else np.zeros((0, 2), np.int64)


def _stats(root: str, paths: Sequence[str]) -> np.ndarray:
    rows = np.empty((len(paths), 2), np.int64)
    for row, path in enumerate(paths):
        rows[row] = -1, 0
        if "://" not in path:
            try:
                stat = os.stat(os.path.join(root, path))
            except OSError:
                continue
            rows[row] = stat.st_size, stat.st_mtime_ns
    return rows


def fingerprint(
    paths: Sequence[str],
    stamp: str,
    columns: Sequence[np.ndarray | None],
    facts: str,
    text: pa.LargeListArray | None,
) -> str:
    """A hash of a collection: its paths, what changes with its files, its labels and captions."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\n".join(paths).encode())
    digest.update(stamp.encode())
    for column in columns:
        digest.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
    digest.update(facts.encode())
    if text is not None:
        digest.update(text.value_lengths().to_numpy(zero_copy_only=False).tobytes())
        digest.update("\n".join(each or "" for each in text.flatten().to_pylist()).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- the record
@dataclass(frozen=True)
class Identity:
    """The images of a collection, as far as their identity goes."""

    store: Store
    paths: pa.LargeStringArray
    where: Int[np.ndarray, "n k"] | None
    stats: Int[np.ndarray, "n 2"] | None = None  # of files
    inside: pa.LargeStringArray | None = None  # the file that each image is a part of, if it is not one

    def files(self) -> pa.LargeStringArray:
        """The file of each image."""
        return self.paths if self.inside is None else self.inside

    def stamp(self) -> str:
        """A text that changes when sizes or times of modification do."""
        if self.stats is None:
            return self.store.stamp([])
        rows = zip(self.files().to_pylist(), self.stats.tolist(), strict=True)
        local = (stats for path, stats in rows if "://" not in path)
        return "\n".join(f"{size} {time}" if size >= 0 else "?" for size, time in local)

    def record(self, training: Int[np.ndarray, "m"] | None = None) -> pa.Table:
        """The record of these images as they are now; training: rows of those trained on (None: all)."""
        n = len(self.paths)
        rows = np.arange(n)
        if n > ALL:
            rows = np.sort(np.random.default_rng(0).permutation(n)[:SAMPLE])
        hashes, read = np.zeros(n, np.uint64), np.zeros(n, bool)
        hashes[rows], read[rows] = self.contents(rows)
        content = pa.array(hashes, mask=~read)
        sizes, times = self._sizes_and_times()
        trained = np.ones(n, bool) if training is None else np.isin(np.arange(n), training)
        columns = {"path": self.paths, "size": sizes, "time": times, "content": content, "trained": trained}
        return pa.table(columns)

    def _sizes_and_times(self) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.paths)
        if self.stats is not None:
            return self.stats[:, 0], self.stats[:, 1]
        sizes = np.full(n, -1)
        if self.where is not None and isinstance(self.store, Archive | Shards):
            sizes = self.where[:, 2 + isinstance(self.store, Shards)]
        return sizes, np.zeros(n, np.int64)

    def contents(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of these images, and which of them could be read."""
        with ThreadPoolExecutor(_THREADS) as pool:
            hashes = list(pool.map(self._content, rows.tolist()))
        values = np.array([value or 0 for value in hashes], np.uint64)
        return values, np.array([value is not None for value in hashes], bool)

    def _content(self, row: int) -> int | None:
        path = self.files()[row].as_py()
        try:
            if isinstance(self.store, Files):
                if "://" in path:  # would be downloaded
                    return None
                data = _edges(os.path.join(self.store.root, path))
            elif isinstance(self.store, EncodedStore):
                data = _cut(self.store.content(path, None if self.where is None else self.where[row]))
            else:
                assert self.where is not None
                data = _cut(self.store.load(path, self.where[row], None, None).tobytes())
        except (BadImage, OSError):
            return None
        part = self.paths[row].as_py().removeprefix(path)  # of a file with several images
        return int.from_bytes(hashlib.blake2b(data + part.encode(), digest_size=8).digest(), "little")


def _edges(file: str) -> bytes:
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        first = stream.read(EDGE)
        if size > EDGE:
            stream.seek(max(EDGE, size - EDGE))
            first += stream.read(EDGE)
    return size.to_bytes(8, "little") + first


def _cut(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data[:EDGE] + data[max(EDGE, len(data) - EDGE) :]


def write(file: Path, record: pa.Table, facts: dict[str, Any]) -> None:
    """Write a record, with facts about it, as Parquet."""
    with files.atomic_write(file) as out:
        table = record.replace_schema_metadata({"omma": json.dumps(facts)})
        pq.write_table(table, out, compression="zstd")


def read(file: Path) -> tuple[pa.Table, dict[str, Any]] | None:
    """A record and its facts; None where there is none, or a damaged one."""
    try:
        table = pq.read_table(file)
        facts = json.loads((table.schema.metadata or {})[b"omma"])
        complete = {"path", "size", "time", "content", "trained"} <= {*table.column_names}
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    return (table, facts) if complete else None


# ---------------------------------------------------------------- changes
@dataclass(frozen=True)
class Changes:
    """What differs between a record and the images as they are now; paths, in order."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    reordered: bool
    touched: int  # files with another time and the same content
    unsure: bool  # the content of some that count as changed was never read; only their time differs

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.reordered)

    def __str__(self) -> str:
        kinds = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        parts = [_counted(paths, kind) for kind, paths in kinds if paths]
        if self.reordered:
            parts.append("their order changed")
        return ", ".join(parts) + (" (or only saved again, at the same size)" if self.unsure else "")


def _counted(paths: Sequence[str], kind: str) -> str:
    more = ", ..." if len(paths) > 1 else ""
    return f"{count(len(paths), 'image')} {kind} ({paths[0]}{more})"


def compare(before: pa.Table, now: Identity) -> Changes:
    """What has changed since a record was made. Only content whose size or time differs is read again."""
    old_paths = pc.cast(before["path"].combine_chunks(), pa.large_string())
    at: Any = pc.index_in(now.paths, value_set=old_paths)  # pyright: ignore[reportAttributeAccessIssue]
    common = np.flatnonzero(at.is_valid().to_numpy(zero_copy_only=False))
    old = at.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
    gone = np.ones(len(before), bool)
    gone[old] = False
    sizes, times = now._sizes_and_times()
    old_sizes, old_times = (before[name].to_numpy()[old] for name in ("size", "time"))
    resized = sizes[common] != old_sizes
    # without a time only the content tells
    retimed = ~resized & ((times[common] != old_times) | (old_times == 0))
    differs, unsure = resized.copy(), False
    differs[retimed], unsure = _rewritten(before, now, common[retimed], old[retimed])
    new = np.setdiff1d(np.arange(len(now.paths)), common)
    return Changes(
        added=now.paths.take(pa.array(new)).to_pylist(),
        removed=old_paths.filter(pa.array(gone)).to_pylist(),
        changed=now.paths.take(pa.array(common[differs])).to_pylist(),
        reordered=bool((np.diff(old) < 0).any()),
        touched=int((times[common] != old_times).sum() - (differs & (times[common] != old_times)).sum()),
        unsure=unsure,
    )


def _rewritten(before: pa.Table, now: Identity, rows: np.ndarray, old: np.ndarray) -> tuple[np.ndarray, bool]:
    """Which of these images have other content, and whether that is unknown of some, which then count.

    Where only a sample's content was read, the sample stands for the others.
    """
    if not len(rows):
        return np.zeros(0, bool), False
    content = before["content"].combine_chunks().take(pa.array(old))
    known = content.is_valid().to_numpy(zero_copy_only=False)
    was = content.fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64)
    values, readable = np.zeros(len(rows), np.uint64), np.zeros(len(rows), bool)
    values[known], readable[known] = now.contents(rows[known])
    differs = known & readable & (values != was)
    # addresses have neither size nor content here: their paths identify them
    remote = np.array([now.stats is not None and now.stats[row, 0] < 0 for row in rows])
    unknown = ~(known & readable) & ~remote
    if unknown.any() and (differs.any() or (known & readable).sum() < min(SAMPLE // 20, len(rows))):
        return differs | unknown, True
    return differs, False
