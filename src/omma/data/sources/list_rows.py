"""Tables whose rows hold the images themselves: Parquet and Arrow files as Hugging Face writes them.

A column of images has cells {bytes, path}; the schema's metadata names classes [Hugging Face, Features].
Parquet is compressed by groups of rows, so its images are copied once to an Arrow file in the cache.
"""

import glob as globbing
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from omma.core import files
from omma.core.caches import cache_folder
from omma.core.errors import line
from omma.core.protocols import BadImage, Inaccessible
from omma.data.sources.columns import listed, plain
from omma.data.sources.labels import SPLITS, Annotations
from omma.data.sources.listing import Listing
from omma.data.sources.names import inaccessible
from omma.data.sources.readers import EncodedStore, Files
from omma.data.sources.table_labels import from_table

NAMES = ("image", "img", "pixel_values", "picture", "jpg", "jpeg", "png")  # of columns of images, in order
_SPLIT = re.compile(rf"(?:^|[-_/])({'|'.join(SPLITS)})(?=[-_./]|$)", re.IGNORECASE)
_PARTS = 8  # folders of a data set, at most: train, test, ..., or data
_FOUND = (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError)


# ---------------------------------------------------------------- recognise
def image_column(schema: pa.Schema) -> str | None:
    """The column of cells {bytes, path}, of several the one that is named as an image; None without one."""
    found = [each.name for each in schema if _holds_images(each.type)]
    named = [name for name in NAMES if name in found]
    return (named or found or [None])[0]


def _holds_images(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    kinds = {kind.field(k).name: kind.field(k).type for k in range(kind.num_fields)}
    if set(kinds) != {"bytes", "path"}:
        return False
    return pa.types.is_binary(kinds["bytes"]) or pa.types.is_large_binary(kinds["bytes"])


def holds_images(file: str) -> bool:
    """Whether a .parquet or .arrow file has a column of images."""
    try:
        schema = pq.read_schema(file) if file.lower().endswith(".parquet") else _table(file).schema
    except _FOUND:
        return False
    return image_column(schema) is not None


def row_files(folder: str) -> list[str]:
    """The .arrow or .parquet files with images that make up a folder: at most two levels down, in order."""
    found = sorted(
        os.path.join(at, name)
        for at, names in _levels(folder)
        for name in names
        if name.lower().endswith((".arrow", ".parquet")) and not name.startswith(("cache-", "."))
    )
    arrow = [file for file in found if file.lower().endswith(".arrow")]
    found = arrow or found
    return found if found and holds_images(found[0]) else []


def _levels(folder: str) -> list[tuple[str, list[str]]]:
    """Names in the folder, and in the folders in it where these are few, as a data set's parts are."""
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
        inner = [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        inner = inner if len(inner) <= _PARTS else []
        return [(folder, [entry.name for entry in entries]), *((path, os.listdir(path)) for path in inner)]
    except OSError:
        return []


def _table(file: str) -> pa.Table:
    """A memory-mapped Arrow file or stream; nothing is read but its structure."""
    mapped = pa.memory_map(file)
    try:
        return ipc.open_stream(mapped).read_all()
    except pa.ArrowInvalid:
        return ipc.open_file(mapped).read_all()


# ---------------------------------------------------------------- read images
@dataclass
class Rows(EncodedStore):
    """Images in a column of Arrow files; `where` is [file, row]. A cell without bytes names a file."""

    names: tuple[str, ...]
    column: str
    root: str  # that the files named are relative to
    sources: tuple[str, ...]  # of which the Arrow files are copies, or they themselves
    _open: dict[int, tuple[Any, int]] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def content(self, path: str, where: np.ndarray | None) -> bytes:
        assert where is not None
        number, row = int(where[0]), int(where[1])
        try:
            if number not in self._open:  # two threads may both open it; one is then dropped
                size = os.path.getsize(self.names[number])
                self._open[number] = _table(self.names[number]).column(self.column), size
            column, size = self._open[number]
            if os.path.getsize(self.names[number]) < size:  # reading what it lacks ends the process
                raise Inaccessible("the file was cut while it was read")
            cell = column[row].as_py()
        except OSError as error:
            raise inaccessible(error) from None
        except (pa.ArrowException, IndexError, KeyError) as error:
            raise BadImage(f"damaged table: {line(error)}") from None
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise BadImage("no image in this row")
        return Files(self.root).content(cell["path"], None) if cell["bytes"] is None else cell["bytes"]

    def stamp(self, paths: list[str]) -> str:
        return " ".join(map(_stamp, self.sources))


def _stamp(file: str) -> str:
    try:
        status = os.stat(file)
    except OSError:
        return "?"
    return f"{status.st_size} {status.st_mtime_ns}"


def _copied(file: str, column: str) -> str:
    """The Arrow file in the cache that holds the images of a .parquet file, written where it is missing."""
    key = hashlib.blake2b(f"{os.path.abspath(file)} {_stamp(file)} {column}".encode(), digest_size=16)
    out = cache_folder() / f"rows-{key.hexdigest()}.arrow"
    if out.exists():
        return str(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetFile(file) as source:
        groups = [source.metadata.row_group(k) for k in range(source.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        if size > (free := shutil.disk_usage(out.parent).free):
            raise ValueError(
                f"{file}: its images take {size / 1e9:.1f} GB in the cache, where {free / 1e9:.1f} GB are "
                "free: set OMMA_CACHE to a folder with more"
            )
        with files.atomic_write(out) as partial:
            schema = pa.schema([source.schema_arrow.field(column)])
            with ipc.new_file(str(partial), schema) as writer:
                for batch in source.iter_batches(batch_size=256, columns=[column]):
                    writer.write_batch(batch)
    return str(out)


# ---------------------------------------------------------------- list
def list_rows(sources: Sequence[str], root: str) -> Listing:
    """The rows of .parquet or .arrow files as images, with labels, captions and columns as in any table.

    Parts are those that the files' names or folders say (train-00000-of-00002.parquet, test/), where both are
    there. Raises ValueError, in one line, for a file that cannot be read or has other columns.
    """
    tables, stores, paths, where, sides = [], [], [], [], []
    column, features = "", {}
    for number, file in enumerate(sources):
        packed = file.lower().endswith(".parquet")
        try:
            schema = pq.read_schema(file) if packed else _table(file).schema
            found = image_column(schema)
            if found is None or (column and found != column):
                raise ValueError(f"no column `{column or 'image'}` of images among {listed(schema.names)}")
            column, features = found, features or features_of(schema)
            others = [name for name in schema.names if not _holds_images(schema.field(name).type)]
            table = pq.read_table(file, columns=others) if packed else _table(file).select(others)
            n = pq.read_metadata(file).num_rows if packed else len(_table(file))
            stores.append(_copied(file, column) if packed else file)
        except (OSError, pa.ArrowException, ValueError) as error:
            about = line(error).removeprefix(f"{file}: ")
            raise ValueError(f"{file}: cannot be read as a table of images ({about})") from None
        tables.append(table.replace_schema_metadata(None))
        name = os.path.relpath(file, root).replace(os.sep, "/")
        paths += [f"{name}[{row}]" for row in range(n)]
        where.append(np.stack([np.full(n, number), np.arange(n)], axis=1))
        side = _SPLIT.search(name.rpartition(".")[0])
        sides += [None if side is None else SPLITS[side[1].lower()]] * n
    joined = pa.concat_tables(tables, promote_options="permissive") if tables[0].column_names else None
    annotations = Annotations() if joined is None else from_features(joined, features)
    if annotations.splits is None and {*sides} == {"train", "test"}:
        annotations = replace(annotations, splits=np.array(sides, "U5"))
    return Listing(
        store=Rows(tuple(stores), column, root, tuple(sources)),
        paths=pa.array(paths, pa.large_string()),
        where=np.concatenate(where).astype(np.int64),
        annotations=annotations,
    )


# ---------------------------------------------------------------- Hugging Face's features
def features_of(schema: pa.Schema) -> dict[str, Any]:
    """What the schema's metadata says of each column; empty where it says nothing."""
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def from_features(table: pa.Table, features: Mapping[str, Any]) -> Annotations:
    """Annotations of a table, in which columns of classes (`ClassLabel`) have their names.

    Labels are `label`, else the only column of classes; -1 and null are not known there.
    """
    names = {
        name: tuple(map(str, each)) for name in table.column_names if (each := _class_names(features, name))
    }
    notes: list[str] = []
    chosen = "label" if "label" in names else next(iter(names)) if len(names) == 1 else None
    if chosen is None and names and not {"label", "labels"} & {*table.column_names}:
        notes.append(f"no labels: of the columns of classes {listed(names)} none is named label")
    columns: dict[str, Any] = {}
    labels = None
    for name in table.column_names:
        if name not in names:
            columns[name] = table[name]
            continue
        codes = _codes(plain(table[name]), len(names[name]))
        if codes is None:
            notes.append(f"the column {name} is not used: it holds other numbers than those of its classes")
            continue
        if name == chosen:
            labels = codes
        else:
            columns[name] = pa.array([None if k < 0 else names[name][k] for k in codes], pa.large_string())
    read = from_table(pa.table(columns), recognise=chosen is None) if columns else Annotations()
    if labels is not None and chosen is not None and (labels >= 0).any():
        read = replace(read, labels=labels, label_sets=None, classes=names[chosen])
    return replace(read, notes=(*notes, *read.notes))


def _class_names(features: Mapping[str, Any], name: str) -> Sequence[str] | None:
    feature = features.get(name)
    if not isinstance(feature, Mapping) or feature.get("_type") != "ClassLabel":
        return None
    return feature.get("names")


def _codes(column: pa.Array, classes: int) -> np.ndarray | None:
    """Classes as int64, -1 where not known; None if they are none of that many."""
    if not pa.types.is_integer(column.type):
        return None
    codes = column.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes if not len(codes) or (codes.min() >= -1 and codes.max() < classes) else None


def list_row_folder(folder: str) -> Listing:
    """A folder that `Dataset.save_to_disk` wrote, or of .parquet files with images."""
    return list_rows(row_files(folder), folder)


def list_row_file(file: str) -> Listing:
    """A single .parquet or .arrow file with images."""
    return list_rows([file], os.path.dirname(file) or ".")


def pattern_files(pattern: str) -> list[str]:
    """The .parquet and .arrow files that match a pattern for these, if they hold images."""
    if not pattern.lower().endswith((".parquet", ".arrow")):
        return []
    found = sorted(globbing.iglob(pattern, recursive=True))
    return found if found and holds_images(found[0]) else []


def list_row_pattern(pattern: str) -> Listing:
    """The .parquet or .arrow files that match a pattern."""
    found = pattern_files(pattern)
    return list_rows(found, os.path.commonpath([os.path.dirname(file) or "." for file in found]))
