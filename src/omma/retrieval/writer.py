"""Change an index: rows are added in segments, and others marked dead, each time all at once or not at all.

Files are written whole and flushed, then the manifest is replaced; what no manifest names is removed. A
process that is killed at any time leaves the index as its last commit has it.
"""

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from jaxtyping import Float, Int

from omma.core import files, outputs
from omma.retrieval import manifest as manifests
from omma.retrieval.manifest import MANIFEST, OWN, VECTOR, Manifest, Segment
from omma.retrieval.store import Index

ROWS = 65_536  # of a segment, at most
DEAD = 0.25  # share of dead rows from which on the live ones are written anew
SMALL = 16  # segments more than the rows need, likewise


class Writer:
    """An index that is being changed; `writing` makes one."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.index = Index.open(folder) if manifests.exists(folder) else None  # as it was at the beginning
        self._dead: dict[int, set[int]] = {}  # rows of segments that this writer has marked

    def commit(
        self, tables: Iterable[pa.Table] = (), gone: Sequence[int] | Int[np.ndarray, "n"] = ()
    ) -> None:
        """Add the rows of these tables, and take out these rows of `index`; on the disk when this returns.

        A table has the columns of `manifest.own_schema`, and those of the collection. Rows that are out
        already stay out.
        """
        segments = self._with_dead(np.asarray(gone, np.int64))
        added = [self._written(part) for table in tables for part in _parts(table)]
        manifest = self.manifest.with_segments((*segments, *added))
        if manifest.segments != self.manifest.segments:
            manifest.write(self.folder)
            self.manifest = manifest
            self._remove_unnamed()

    def tidy(self) -> bool:
        """Write the live rows anew where many are dead or segments are many; was that so?"""
        segments = self.manifest.segments
        rows, live = sum(s.rows for s in segments), self.manifest.rows
        needed = -(-live // ROWS)
        if rows - live <= DEAD * rows and len(segments) <= SMALL + 2 * needed:
            return False
        index = Index.open(self.folder)
        fresh = [self._written(part) for part in _gathered(index)]
        self.manifest = self.manifest.with_segments(tuple(fresh))
        self.manifest.write(self.folder)
        self._remove_unnamed()
        self.index, self._dead = Index.open(self.folder), {}
        return True

    def replace(self, **fields: object) -> None:
        """Change what else the manifest says."""
        self.manifest = replace(self.manifest, **fields)  # pyright: ignore[reportArgumentType]
        self.manifest.write(self.folder)
        self._remove_unnamed()

    def _with_dead(self, gone: Int[np.ndarray, "n"]) -> list[Segment]:
        segments = list(self.manifest.segments)
        if not len(gone):
            return segments
        assert self.index is not None
        places = gone if self.index.live is None else self.index.live[gone]
        start = 0
        for number, segment in enumerate(self.index.manifest.segments):
            own = places[(places >= start) & (places < start + segment.rows)] - start
            start += segment.rows
            if not len(own):
                continue
            if number not in self._dead:
                before = self.index.dead[number]
                self._dead[number] = set() if before is None else {*np.flatnonzero(before).tolist()}
            self._dead[number].update(own.tolist())
            segments[number] = self._marked(segment, sorted(self._dead[number]))
        return segments

    def _marked(self, segment: Segment, dead: list[int]) -> Segment:
        name = f"{Path(segment.file).stem}-{secrets.token_hex(4)}.npy"
        with (
            files.atomic_write(self.folder / name, durable=True) as partial,
            open(partial, "wb") as file,  # np.save adds an ending to a name without one
        ):
            np.save(file, np.asarray(dead, np.uint32))
        return replace(segment, dead=name, dead_rows=len(dead))

    def _written(self, table: pa.Table) -> Segment:
        name = f"rows-{secrets.token_hex(8)}.arrow"
        table = table.combine_chunks()
        with (
            files.atomic_write(self.folder / name, durable=True) as partial,
            pa.ipc.new_file(str(partial), table.schema) as writer,
        ):
            writer.write_table(table)
        return Segment(name, len(table), (self.folder / name).stat().st_size)

    def _remove_unnamed(self) -> None:
        """Remove what the manifest does not name; who has it open reads on."""
        named = {*self.manifest.names(), MANIFEST, ".lock"}
        for file in self.folder.iterdir():
            if file.name not in named and _is_ours(file.name):
                with contextlib.suppress(OSError):
                    files.remove(file)


@contextlib.contextmanager
def writing(folder: str | Path, manifest: Manifest) -> Iterator[Writer]:
    """Open an index for writing, or make an empty one of this manifest; others may read it meanwhile.

    An index that is there keeps its own manifest: the caller compares the two. Raises ValueError where
    another process writes it, and for a folder that holds other things.
    """
    folder = Path(folder)
    outputs.check_folder(folder)
    if folder.exists() and not manifests.exists(folder):
        strange = [file.name for file in folder.iterdir() if not _is_ours(file.name)]
        if strange:
            raise ValueError(f"{folder} holds other files ({strange[0]}): choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            writer = Writer(folder, manifests.read(folder) if manifests.exists(folder) else manifest)
            writer._remove_unnamed()
            yield writer
    except Timeout:
        raise ValueError(f"{folder} is being written by another process: wait for it") from None
    finally:
        if not manifests.exists(folder) and {file.name for file in folder.iterdir()} <= {".lock"}:
            files.remove(folder)  # nothing was committed


def _is_ours(name: str) -> bool:
    """Could a writer of this folder have made this file?"""
    return name in (MANIFEST, ".lock") or name.startswith(("rows-", "lance-", ".rows-", f".{MANIFEST}."))


def rows_of(
    vectors: Float[np.ndarray, "n d"], columns: dict[str, pa.Array], others: pa.Table | None = None
) -> pa.Table:
    """A table to commit. vectors: as the model gives them; columns: of `OWN` but the vector and its norm.

    others: columns of the collection; those of a name that omma uses are left out.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    units = vectors / np.maximum(norms, np.float32(1e-12))[:, None]
    schema = manifests.own_schema(vectors.shape[1])
    own = columns | {
        manifests.NORM: pa.array(norms, pa.float32()),
        VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(units.ravel()), vectors.shape[1]),
    }
    table = pa.table([own.get(f.name, pa.nulls(len(vectors), f.type)) for f in schema], schema=schema)
    if others is None:
        return table
    for name in others.column_names:
        if name not in OWN and not name.startswith("_"):
            table = table.append_column(name, others[name])
    return table


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, len(table), ROWS):
        yield table.slice(start, ROWS)


def _gathered(index: Index) -> Iterator[pa.Table]:
    """The live rows, a segment's worth in memory at a time."""
    for start in range(0, len(index), ROWS):
        part = index.table.slice(start, ROWS)
        vectors = index.vectors(np.arange(start, start + len(part)))
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), index.dim)
        yield part.append_column(pa.field(VECTOR, values.type, nullable=False), values)
