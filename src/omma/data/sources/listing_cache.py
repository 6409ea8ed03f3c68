"""Cache the listing of a folder's or archive's images until modification times show a change."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from omma.core import files
from omma.data.sources.labels import Annotations
from omma.data.sources.listing import Listing
from omma.data.sources.matching import TABLES
from omma.data.sources.readers import Archive, Files, Store
from omma.data.sources.sound import Sounds
from omma.data.sources.video import Videos

log = logging.getLogger(__name__)

FORMAT = 7  # version of the cache file and of how labels are read; files of another version are ignored
SETTLED = 2 * 10**9  # ns; a folder modified this shortly before it was listed may change without a new time


def cache_key(source: str, label_depth: int | str | None = None) -> str:
    """A hash of the source's address and of how its labels are read, for use in a file name."""
    address = os.fsencode(source if "://" in source else os.path.abspath(source))
    if label_depth is not None:
        address += f"\0{label_depth}".encode()
    return hashlib.blake2b(address, digest_size=16).hexdigest()


def write_whole(file: Path, data: Any) -> None:
    """Write atomically, so that two processes may write; an error is logged and otherwise ignored."""
    try:
        with files.atomic_write(file) as partial:
            partial.write_bytes(data)
    except OSError as error:
        log.info("cache %s not written: %s", file, error)


def remember(file: Path, source: str, listing: Listing, stamp: str | None = None) -> None:
    """Write a listing as an Arrow file; `stamp` (default: the source's) changes when it is stale."""
    columns: dict[str, Any] = {"path": listing.paths}
    if listing.where is not None:
        columns |= {f"where{k}": column for k, column in enumerate(listing.where.T)}
    for name in ("labels", "splits", "text"):
        if (column := getattr(listing.annotations, name)) is not None:
            columns[name] = column
    if (sets := listing.annotations.label_sets) is not None:
        columns["label_sets"] = pa.FixedSizeListArray.from_arrays(pa.array(sets.ravel()), sets.shape[1])
    if (table := listing.annotations.columns) is not None:
        columns |= {f"column:{name}": table[name] for name in table.column_names}
    meta = {
        "format": FORMAT,
        "stamp": _stamp(source, listing.times, listing.started) if stamp is None else stamp,
        "times": listing.times,
        "started": listing.started,
        "channels": listing.channels,
        "ranges": listing.ranges,
        "classes": listing.annotations.classes,
        "skipped": listing.skipped,
        "notes": listing.annotations.notes,
        "sounds": isinstance(listing.store, Sounds),
        "videos": isinstance(listing.store, Videos),
    }
    table = pa.table(columns).replace_schema_metadata({"omma": json.dumps(meta)})
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_whole(file, sink.getvalue())


def recall(file: Path, source: str, store: Store | None = None) -> Listing | None:
    """The cached listing if its stamp is still that of `store` (None: of the source); otherwise None."""
    try:
        return _recalled(file, source, store)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError):
        return None  # absent, damaged or another version's


def _recalled(file: Path, source: str, store: Store | None) -> Listing | None:
    with pa.OSFile(str(file)) as stream:
        table = ipc.open_file(stream).read_all()
    meta = json.loads((table.schema.metadata or {})[b"omma"])
    if meta["format"] != FORMAT or not meta["stamp"]:
        return None
    now = _stamp(source, meta["times"], meta["started"]) if store is None else store.stamp([])
    if meta["stamp"] != now:
        return None
    columns = {name: pa.concat_arrays(table[name].chunks) for name in table.column_names}
    where = [column.to_numpy() for name, column in columns.items() if name.startswith("where")]
    others = {name[7:]: column for name, column in columns.items() if name.startswith("column:")}
    annotations = Annotations(
        labels=columns["labels"].to_numpy() if "labels" in columns else None,
        label_sets=_rows(columns["label_sets"]) if "label_sets" in columns else None,
        classes=tuple(meta["classes"]),
        splits=np.array(columns["splits"].to_pylist(), "U5") if "splits" in columns else None,
        text=columns.get("text"),
        notes=tuple(meta["notes"]),
        columns=pa.table(others) if others else None,
    )
    return Listing(
        store=store or _store(source, meta),
        paths=columns["path"],
        where=np.stack(where, axis=1) if where else None,
        annotations=annotations,
        skipped=[(path, reason) for path, reason in meta["skipped"]],
        times=meta["times"],
        started=meta["started"],
        channels=meta["channels"],
        ranges={name: (low, high) for name, (low, high) in meta["ranges"].items()},
    )


def _store(source: str, meta: dict[str, Any]) -> Store:
    if meta["videos"]:
        return Videos(Files(source))
    files = Files(source) if meta["times"] else Archive(source)
    return Sounds(files) if meta["sounds"] else files


def _rows(column: pa.FixedSizeListArray) -> np.ndarray:
    return column.flatten().to_numpy().reshape(len(column), -1).copy()


def _stamp(source: str, times: dict[str, int], started: int) -> str:
    """A text that changes when the listing is stale; "" if it may be stale already."""
    if not times:
        stat = os.stat(source)
        return f"{stat.st_size} {stat.st_mtime_ns}"
    if max(times.values()) >= started - SETTLED:
        return ""
    try:
        if any(os.stat(os.path.join(source, folder)).st_mtime_ns != old for folder, old in times.items()):
            return ""
        # rewriting a table in place does not change its folder's time
        tops = [folder for folder in times if "/" not in folder]
        tables = [os.path.join(source, top, name) for top in tops for name in TABLES]
        return (
            " ".join(str(os.stat(table).st_mtime_ns) for table in tables if os.path.exists(table)) or "folder"
        )
    except OSError:
        return ""
