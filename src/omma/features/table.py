"""A table of vectors in parts: files that any process writes, found again after a stop, joined in order."""

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
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from jaxtyping import Int

from omma.core import files
from omma.core.protocols import Images
from omma.features.extract import Part

ROWS = 8192  # images of a part: what is held in memory


class Joined(NamedTuple):
    """What came into the table."""

    rows: int
    bad: tuple[tuple[str, str], ...]  # (path, reason) of images left out


@dataclass(frozen=True)
class Parts:
    """The table `out` of these images; part k holds images k * size to (k + 1) * size.

    The parts lie in a hidden folder beside `out`, each there whole or not at all, under names that begin with
    `key`: parts of another key are another table's. Small to pickle, but for the images.
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
        """Which images a part is about."""
        return np.arange(number * self.size, min((number + 1) * self.size, len(self.images)))

    def images_in(self, numbers: Sequence[int]) -> int:
        return sum(len(self.rows(number)) for number in numbers)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Nobody else may write this table meanwhile; parts of another are removed, and a folder without any.

        Raises ValueError if somebody does. The lock of a process that died is free.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                for file in self.folder.iterdir():
                    if file.name != ".lock" and not file.name.startswith(self.key):
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
        """Parts that are still to be written."""
        there = {file.name for file in self.folder.iterdir()}
        return [number for number in range(self.count) if self._file(number).name not in there]

    def fill(self, numbers: Sequence[int], embed: Callable[[Images], Iterator[Part]]) -> Iterator[int]:
        """Write these parts; yields after every batch how many images it was of.

        embed: features of a collection in order, as `features.stream`, in batches that divide `size`.
        """
        if len(numbers) == 0:
            return
        rows = np.concatenate([self.rows(number) for number in numbers])
        batches = embed(self.images.subset(rows))  # one stream, so that decoding goes on between parts
        for number in numbers:
            waiting: list[Part] = []
            left = len(self.rows(number))
            while left:
                batch = next(batches)
                done = len(batch.indices) + len(batch.bad)
                left -= done
                assert left >= 0, "a batch of two parts"
                waiting.append(batch._replace(indices=rows[batch.indices]))
                yield done
            self._write(number, waiting)

    def join(self) -> Joined:
        """Write the table from its parts, of which one at a time is in memory, and remove them.

        Raises ValueError where parts are missing or no image could be read.
        """
        if missing := self.missing():
            raise ValueError(
                f"{len(missing)} of {self.count} parts are not in {self.folder}: "
                "all machines must see it under the same name"
            )
        rows, bad = 0, list(getattr(self.images, "skipped", ()))
        with files.atomic_write(self.out) as partial:
            with pq.ParquetWriter(partial, self.schema, compression="zstd") as writer:
                for number in range(self.count):
                    with pa.memory_map(str(self._file(number))) as source:
                        table = pa.ipc.open_file(source).read_all()
                        bad += json.loads(table.schema.metadata[b"bad"])
                        writer.write_table(table.replace_schema_metadata(self.schema.metadata))
                        rows += table.num_rows
            if rows == 0:
                self.remove()
                first = f"; the first: {bad[0][0]}: {bad[0][1]}" if bad else ""
                raise ValueError(f"none of {len(self.images)} images could be read{first}")
        self.remove()
        return Joined(rows, tuple((str(path), str(reason)) for path, reason in bad))

    def remove(self) -> None:
        """All parts, with their folder."""
        shutil.rmtree(self.folder)

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.key}-{number:07d}.arrow"

    def _write(self, number: int, batches: list[Part]) -> None:
        """The rows of some batches."""
        indices = np.concatenate([batch.indices for batch in batches])
        vectors = np.concatenate([batch.vectors.reshape(-1) for batch in batches])
        dim = self.schema.field("vector").type.list_size
        columns: dict[str, pa.Array] = {
            "path": pa.array([_text(self.images.path(int(i))) for i in indices], pa.string()),
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


def part_size(images: int, batch: int, processes: int) -> int:
    """Images of a part: about ROWS, or fewer so that every process has one; a multiple of the batch.

    Each image then comes in the same batch whoever embeds it, which gives it the same bits.
    """
    return batch * -(-min(ROWS, -(-images // processes)) // batch)


def key_of(provenance: dict[str, Any], *sizes: int) -> str:
    """What parts of the same table have in common."""
    return hashlib.sha256(json.dumps([provenance, *sizes], sort_keys=True).encode()).hexdigest()[:32]


def schema(dim: int, labelled: bool, provenance: dict[str, Any]) -> pa.Schema:
    """Columns of the table: path, label if anything is labelled, vector; provenance as JSON under "omma"."""
    fields = [pa.field("path", pa.string(), nullable=False)]
    if labelled:
        fields.append(pa.field("label", pa.string()))
    fields.append(pa.field("vector", pa.list_(pa.float32(), dim), nullable=False))
    return pa.schema(fields, metadata={"omma": json.dumps(provenance)})


def _text(path: str) -> str:
    """A path as valid UTF-8; bytes that are none become replacement characters."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
