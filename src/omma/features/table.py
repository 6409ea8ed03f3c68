"""A table of vectors written in shards: by any process, resumable after a stop, joined in order."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from jaxtyping import Int

from omma.core import files, words
from omma.core.protocols import Images, Inaccessible
from omma.features import formats
from omma.features.extract import FeatureBatch

ROWS = 8192  # images a shard: those whose vectors are in memory at a time


class Joined(NamedTuple):
    """The contents of the finished table."""

    rows: int
    bad: tuple[tuple[str, str], ...]  # (path, reason) of images left out


@dataclass(frozen=True)
class ShardedTable:
    """The table `out` of these images; shard k holds images k * size to (k + 1) * size.

    Shards are files in a hidden folder beside `out`, written atomically. Their names begin with `key`; shards
    with another key belong to another table. Apart from the images, this is small to pickle.
    """

    out: Path
    images: Images
    schema: pa.Schema
    size: int
    key: str

    @property
    def folder(self) -> Path:
        return self.out.with_name(f".{self.out.name}.parts")

    @property
    def count(self) -> int:
        return -(-len(self.images) // self.size)

    def rows(self, number: int) -> Int[np.ndarray, "n"]:
        """The images of a shard."""
        return np.arange(number * self.size, min((number + 1) * self.size, len(self.images)))

    def count_images(self, numbers: Sequence[int]) -> int:
        return sum(len(self.rows(number)) for number in numbers)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock this table for writing; removes shards of other tables, and on exit an empty folder.

        Shards that lack images which could not be accessed are removed too: perhaps these can be read now.
        Raises ValueError if another process holds the lock; the lock of a process that died is free.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                files.remove_leftovers(self.out)
                for file in self.folder.iterdir():
                    if file.name != ".lock" and not (file.name.startswith(self.key) and _whole(file)):
                        file.unlink()
                try:
                    yield
                finally:
                    if self.folder.exists() and len(self.missing()) == self.count:
                        self.remove()
        except Timeout:
            raise ValueError(
                f"{self.out} is being written by another process: wait for it or choose another --out"
            ) from None

    def missing(self) -> list[int]:
        """Numbers of the shards that are not written yet."""
        written = {file.name for file in self.folder.iterdir()}
        return [number for number in range(self.count) if self._file(number).name not in written]

    def fill(
        self, numbers: Sequence[int], embed: Callable[[Images], Iterator[FeatureBatch]]
    ) -> Iterator[int]:
        """Write these shards; yields the number of images of every batch once it is embedded.

        embed: returns the features of a collection in order, like `extract.stream`, in batches whose size
        divides `size`.
        """
        if len(numbers) == 0:
            return
        rows = np.concatenate([self.rows(number) for number in numbers])
        batches = embed(self.images.subset(rows))  # one stream: decoding continues across shards
        for number in numbers:
            collected: list[FeatureBatch] = []
            left = len(self.rows(number))
            while left:
                batch = next(batches)
                done = len(batch.indices) + len(batch.bad)
                left -= done
                assert left >= 0, "a batch crosses two shards"
                collected.append(batch._replace(indices=rows[batch.indices]))
                yield done
            self._write(number, collected)

    def join(self) -> Joined:
        """Write the table from its shards, with one in memory at a time, and remove them.

        Raises ValueError if shards are missing or no image could be read.
        """
        if missing := self.missing():
            raise ValueError(
                f"{len(missing)} of {self.count} shards are not in {self.folder}: "
                "all machines must see it under the same name"
            )
        rows, bad = 0, list(getattr(self.images, "skipped", ()))
        for table in self._tables():
            bad += json.loads(table.schema.metadata[b"bad"])
            rows += table.num_rows
        if rows == 0:
            self.remove()
            first = f"; the first: {bad[0][0]}: {bad[0][1]}" if bad else ""
            raise ValueError(f"none of {words.count(len(self.images), 'image')} could be read{first}")
        with files.atomic_write(self.out) as partial:
            formats.write(partial, formats.ending(self.out), self._tables, self.schema)
        self.remove()
        return Joined(rows, tuple((str(path), str(reason)) for path, reason in bad))

    def _tables(self) -> Iterator[pa.Table]:
        """The content of the shards, in order, mapped from their files."""
        for number in range(self.count):
            with pa.memory_map(str(self._file(number))) as source:
                yield pa.ipc.open_file(source).read_all()

    def remove(self) -> None:
        """Remove all shards with their folder."""
        shutil.rmtree(self.folder)

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.key}-{number:07d}.arrow"

    def _write(self, number: int, batches: list[FeatureBatch]) -> None:
        """Write one shard, the rows of these batches."""
        indices = np.concatenate([batch.indices for batch in batches])
        vectors = np.concatenate([batch.vectors.reshape(-1) for batch in batches])
        dim = self.schema.field("vector").type.list_size
        columns: dict[str, pa.Array] = {
            "path": pa.array([as_text(self.images.path(int(i))) for i in indices], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors), dim),
        }
        if self.images.labels is not None:
            names = [self.images.classes[k] if k >= 0 else None for k in self.images.labels[indices]]
            columns["label"] = pa.array(names, pa.string())
        bad = [pair for batch in batches for pair in batch.bad]
        schema = self.schema.with_metadata({"bad": json.dumps(bad)})
        table = pa.table([columns[name] for name in schema.names], schema=schema)
        with (
            files.atomic_write(self._file(number), durable=True) as partial,
            pa.ipc.new_file(str(partial), schema) as writer,
        ):
            writer.write_table(table)


def _whole(file: Path) -> bool:
    """Whether a shard can be read and lacks no image for want of access."""
    try:
        with pa.memory_map(str(file)) as source:
            bad = json.loads(pa.ipc.open_file(source).schema.metadata[b"bad"])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return False
    return not any(Inaccessible.is_reason(reason) for _, reason in bad)


def shard_size(images: int, batch: int, processes: int) -> int:
    """Images a shard: about ROWS, fewer if some process would have none; a multiple of the batch.

    Every image is then in the same batch whichever process embeds it, so its vector is the same bit for bit.
    """
    return batch * -(-min(ROWS, -(-images // processes)) // batch)


def table_key(provenance: dict[str, Any], *sizes: int) -> str:
    """The hash that names the shards of a table."""
    return hashlib.sha256(json.dumps([provenance, *sizes], sort_keys=True).encode()).hexdigest()[:32]


def table_schema(dim: int, labelled: bool, provenance: dict[str, Any]) -> pa.Schema:
    """Columns path, label (if there are labels) and vector; provenance as JSON under "omma"."""
    fields = [pa.field("path", pa.string(), nullable=False)]
    if labelled:
        fields.append(pa.field("label", pa.string()))
    fields.append(pa.field("vector", pa.list_(pa.float32(), dim), nullable=False))
    return pa.schema(fields, metadata={"omma": json.dumps(provenance)})


def as_text(path: str) -> str:
    """A path as valid UTF-8; other bytes become replacement characters."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
