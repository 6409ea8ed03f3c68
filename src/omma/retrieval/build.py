"""Bring an index up to date with images, or fill one from a table of vectors."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int

from omma.core.errors import line
from omma.core.progress import Progress
from omma.core.protocols import Images, Inaccessible
from omma.core.words import count
from omma.data.batches.preprocess import as_dict
from omma.data.sources.columns import is_nested
from omma.features.extract import FeatureBatch, prepare, stream
from omma.retrieval import manifest as manifests
from omma.retrieval.changes import Changes, State, compare, taken
from omma.retrieval.manifest import HASH, LABEL, OWN, PATH, IndexModel, Manifest
from omma.retrieval.writer import Writer, rows_of, writing
from omma.weights import Model

ROWS = 8192  # embedded between two commits, at most ...
SECONDS = 15.0  # ... and for so long
READ = 16_384  # rows of a table in memory at a time


@dataclass(frozen=True)
class Built:
    """What became of an index."""

    rows: int
    dim: int
    kept: int = 0  # images as they were
    added: int = 0
    changed: int = 0  # content, and so vectors
    moved: int = 0  # paths, not content
    removed: int = 0
    bad: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (path, reason) of images left out
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- from images
def update(
    folder: Path,
    model: Model,
    identity: IndexModel,
    images: Images,
    device: torch.device,
    precision: torch.dtype,
    progress: Progress | None = None,
) -> Built:
    """Make the index hold exactly these images; those that it knows are not embedded again.

    progress: images that are in the index on the disk, and all. Raises ValueError for an index of another
    model, and where no image can be read.
    """
    manifest = Manifest(
        model=identity,
        dim=model.encoder.dim,
        preprocess=as_dict(model.preprocess),
        precision=str(precision).removeprefix("torch."),
        source=_address(images),
    )
    with writing(folder, manifest) as writer:
        _require_same(writer.manifest, manifest, folder)
        state = State.of(images)
        changes = compare(writer.index, state)
        writer.commit(_reused(writer, state, changes), changes.gone)
        network = prepare(model.encoder, device, precision) if len(changes.embed) else None
        bad = list(getattr(images, "skipped", ()))
        skipped = len(bad)
        if network is not None:
            subset = images.subset(state.rows[changes.embed])
            done = len(state.table) - len(changes.embed)
            for batches in _pieces(stream(network, subset, model.preprocess)):
                found = [pair for batch in batches for pair in batch.bad]
                bad += found
                writer.commit(*_embedded(state, changes, batches, found))
                done += sum(len(batch.indices) + len(batch.bad) for batch in batches)
                if progress:
                    progress(done, len(state.table))
        if not writer.manifest.rows:
            first = f"; the first: {bad[0][0]}: {bad[0][1]}" if bad else ""
            raise ValueError(f"none of {count(len(images), 'image')} can be read{first}")
        if writer.manifest.source != manifest.source:
            writer.replace(source=manifest.source, model=identity)
        writer.tidy()
        notes = [f"{count(state.twice, 'image')} listed twice: once in the index"] if state.twice else []
        lost = len(bad) - skipped
        return Built(
            rows=writer.manifest.rows, dim=manifest.dim, kept=changes.kept, moved=changes.moved,
            added=changes.added - min(lost, changes.added), changed=changes.changed,
            removed=changes.removed, bad=tuple(bad), notes=tuple(notes),
        )  # fmt: skip


def _require_same(there: Manifest, now: Manifest, folder: Path) -> None:
    """Raise ValueError where an index holds vectors that are made in another way."""
    there.model.require(now.model.digest, now.model.name, folder)
    if there.dim != now.dim or dict(there.preprocess) != dict(now.preprocess):
        raise ValueError(
            f"{folder} holds vectors of images that were prepared in another way: build an index in another "
            "folder"
        )


def _address(images: Images) -> str:
    """Where the images lie, from any working directory; "" for those in memory."""
    source = str(getattr(images, "source", ""))
    place = Path(source).expanduser()
    return str(place.absolute()) if source and place.exists() else source


def _reused(writer: Writer, state: State, changes: Changes) -> Iterator[pa.Table]:
    """Rows of images that have the content of one that the index knows."""
    for start in range(0, len(changes.reuse), ROWS):
        at, old = changes.reuse[start : start + ROWS], changes.reuse_old[start : start + ROWS]
        assert writer.index is not None
        norms = writer.index.table[manifests.NORM].take(pa.array(old)).to_numpy()
        known = writer.index.table[HASH].take(pa.array(old)).to_pylist()
        hashes = [changes.hashes.get(int(row), before) for row, before in zip(at, known)]
        vectors = writer.index.vectors(old)
        table = _table(state, at, hashes, vectors)
        column = table.schema.get_field_index(manifests.NORM)
        yield table.set_column(column, table.schema.field(column), pa.array(norms, pa.float32()))


def _embedded(
    state: State, changes: Changes, batches: list[FeatureBatch], bad: list[tuple[str, str]]
) -> tuple[list[pa.Table], Int[np.ndarray, "n"]]:
    """Rows of images that were just embedded, and the old ones that they replace.

    An image that can no longer be read leaves the index; not so one that cannot be accessed now.
    """
    places = np.concatenate([batch.indices for batch in batches])
    at = changes.embed[places]
    lost = {path for path, reason in bad if not Inaccessible.is_reason(reason)}
    gone = [old for old in changes.embed_old[places] if old >= 0]
    if lost:
        names = state.table[PATH].take(pa.array(changes.embed)).to_pylist()
        gone += [old for name, old in zip(names, changes.embed_old) if old >= 0 and name in lost]
    if not len(at):
        return [], np.array(gone, np.int64)
    missing = np.array([row for row in at if int(row) not in changes.hashes], np.int64)
    hashes = changes.hashes | dict(zip(missing.tolist(), state.hashes(missing)))
    vectors = np.concatenate([batch.vectors for batch in batches if len(batch.indices)])
    return [_table(state, at, [hashes[int(row)] for row in at], vectors)], np.array(gone, np.int64)


def _table(
    state: State, at: Int[np.ndarray, "n"], hashes: list[bytes | None], vectors: np.ndarray
) -> pa.Table:
    columns: dict[str, Any] = taken(state.table, at)
    named = {name: column for name, column in columns.items() if name not in OWN}
    others = pa.table(named) if named else None
    own = {name: column.combine_chunks() for name, column in columns.items() if name in OWN}
    return rows_of(vectors, own | {HASH: pa.array(hashes, pa.binary(16))}, others)


def _pieces(batches: Iterator[FeatureBatch]) -> Iterator[list[FeatureBatch]]:
    """Batches by what is committed together."""
    piece, rows, started = list[FeatureBatch](), 0, time.monotonic()
    for batch in batches:
        piece.append(batch)
        rows += len(batch.indices)
        if rows >= ROWS or time.monotonic() - started > SECONDS:
            yield piece
            piece, rows, started = [], 0, time.monotonic()
    if piece:
        yield piece


# ---------------------------------------------------------------- from a table of vectors
def fill(
    folder: Path,
    table: str | Path,
    identity: IndexModel | None,
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Make an index of the vectors of a .parquet: the columns path and vector, and any others.

    identity: the model that made them; None: what `omma embed` wrote into the table says so. It appears when
    all rows are in it. Raises ValueError where the table lacks columns or names no model, and for a folder
    that holds an index.
    """
    if manifests.exists(folder):
        raise ValueError(f"{folder} is an index already: choose another folder for these vectors")
    if Path(table).suffix.lower() != ".parquet":
        raise ValueError(f"{table}: give a .parquet, as omma embed IMAGES --out table.parquet writes it")
    try:
        with pq.ParquetFile(table) as file:
            manifest = _described(table, file, identity)
            with writing(folder, manifest) as writer:
                writer.commit(_read(table, file, manifest.dim, progress))
                return Built(rows=writer.manifest.rows, dim=manifest.dim, added=writer.manifest.rows)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{table} cannot be read ({line(error)}): write it again") from None


def _described(table: str | Path, file: pq.ParquetFile, identity: IndexModel | None) -> Manifest:
    """What an index of this table says of itself."""
    schema = file.schema_arrow
    if lacking := [name for name in ("path", "vector") if name not in schema.names]:
        raise ValueError(f"{table} has no column {lacking[0]}: omma embed writes path and vector")
    try:
        said = json.loads((schema.metadata or {}).get(b"omma", b"{}"))
        model, source = said.get("model", {}), str(said.get("data", {}).get("source", ""))
        digest, preprocess = str(model.get("digest", "")), model.get("preprocess", {})
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{table}: what it says of its model is damaged ({line(error)})") from None
    if identity is None:
        if not digest:
            raise ValueError(f"{table} does not say which model made its vectors: give omma index MODEL, too")
        identity = IndexModel(name="", digest=digest)
    elif digest and digest != identity.digest:
        raise ValueError(
            f"{table} holds vectors of other weights ({digest[:12]}) than {identity.name} "
            f"({identity.digest[:12]}): give the model that made them"
        )
    kind = schema.field("vector").type
    first = next(file.iter_batches(1, columns=["vector"]), None)
    if (
        not (pa.types.is_fixed_size_list(kind) or is_nested(kind))
        or first is None
        or first[0][0].as_py() is None
    ):
        raise ValueError(f"{table}: its column vector holds no lists of numbers ({kind})")
    return Manifest(
        identity, len(first[0][0].as_py()), preprocess, str(said.get("precision", "float32")), source
    )


def _read(
    table: str | Path, file: pq.ParquetFile, dim: int, progress: Callable[[int, int], None] | None
) -> Iterator[pa.Table]:
    """The rows of a table as an index has them, a part at a time."""
    done, total = 0, file.metadata.num_rows
    for batch in file.iter_batches(READ):
        part = pa.Table.from_batches([batch])
        vectors = part["vector"].combine_chunks()
        values = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        if vectors.null_count or len(values) != dim * len(part) or not np.isfinite(values).all():
            raise ValueError(f"{table}: a vector after row {done} is missing, not finite or not {dim} long")
        own = {PATH: part["path"].cast(pa.string()).combine_chunks()}
        if "label" in part.column_names:
            own[LABEL] = part["label"].cast(pa.string()).combine_chunks()
        others = part.select(
            [f.name for f in part.schema if f.name not in OWN and not is_nested(f.type)]
        )  # fmt: skip
        yield rows_of(values.reshape(-1, dim), own, others)
        done += len(part)
        if progress:
            progress(done, total)
