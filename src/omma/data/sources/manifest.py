"""A manifest: a table whose rows are the images, wherever they lie."""

import os
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from omma.data.sources import remote
from omma.data.sources.columns import listed, shown, texts
from omma.data.sources.labels import Annotations
from omma.data.sources.matching import contradicted
from omma.data.sources.readers import Files
from omma.data.sources.table_labels import from_table
from omma.data.sources.tables import PATHS, read_table


class Manifest(NamedTuple):
    """The images of a table; rows of `paths` and of the annotations correspond."""

    store: Files
    paths: pa.LargeStringArray
    annotations: Annotations
    skipped: list[tuple[str, str]]


def read_manifest(file: str) -> Manifest:
    """Read a table with a column of paths, and labels, splits and captions if it has them.

    Raises ValueError, in one line, if the table cannot be read or names no images.
    """
    table = read_table(file, file)
    column = next((name for name in PATHS if name in table.column_names), None)
    if column is None:
        columns = listed(table.column_names)
        raise ValueError(
            f"{file}: no column `path` among {columns}; name the column of image paths `path` "
            "in the first line"
        )
    if not len(table):
        raise ValueError(f"{file}: no row below its header; give one row an image")
    try:
        paths = texts(table, column, lenient=True)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    store = Files(os.path.dirname(os.path.abspath(file)), remote=remote.allowed())
    reasons = [
        _why_not(path, known, store.remote)
        for path, known in zip(paths.to_pylist(), table[column].is_valid().to_pylist())
    ]
    good = pa.array([reason is None for reason in reasons], pa.bool_())
    table, used = table.filter(good), _with_slashes(paths.filter(good), store.root)
    try:
        annotations = _once(from_table(table), used)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return Manifest(
        store,
        used,
        annotations,
        [
            (f"row {row + 1}: {path}" if path else f"row {row + 1}", reason)
            for row, (path, reason) in enumerate(zip(paths.to_pylist(), reasons))
            if reason is not None
        ],
    )


def _why_not(path: str | None, is_given: bool, fetch: bool) -> str | None:
    """Why a row names no image; None if it may."""
    if not path:
        return "its path is not valid UTF-8" if path is None and is_given else "no path"
    if "\0" in path:
        return "its path holds a NUL byte"
    return remote.REFUSED if remote.is_remote(path) and not fetch else None


def _with_slashes(paths: pa.LargeStringArray, root: str) -> pa.LargeStringArray:
    """Paths that Windows wrote, with / for \\ where that is what finds the first of them."""
    names = paths.to_pylist()
    first = next((name for name in names if "\\" in name and "://" not in name), None)
    if first is None or os.path.exists(os.path.join(root, first)):
        return paths
    if not os.path.exists(os.path.join(root, first.replace("\\", "/"))):
        return paths
    return pa.array([name if "://" in name else name.replace("\\", "/") for name in names], pa.large_string())


def _once(annotations: Annotations, paths: pa.LargeStringArray) -> Annotations:
    """The annotations with a note on rows that repeat an image, and without labels that contradict others."""
    codes = paths.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first, again = np.unique(codes, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[again] != np.arange(len(codes)))
    if not len(repeated):
        return annotations
    first_path = paths[int(repeated[0])].as_py()
    notes = [
        f"rows that repeat an image: {len(repeated):,} (the first: {shown(first_path)}); "
        "a split may put it into both of its parts"
    ]
    name = "labels" if annotations.label_sets is None else "label_sets"
    labels = getattr(annotations, name)
    if labels is not None:
        unequal = labels[repeated] != labels[first[again[repeated]]]
        differ = repeated[unequal.reshape(len(repeated), -1).any(axis=1)]
        rows = np.flatnonzero(np.isin(again, again[differ]))
        labels, more = contradicted(
            labels, first[again[rows]], rows, [paths[int(row)].as_py() for row in differ[:1]]
        )
        notes += more
    return replace(annotations, **{name: labels}, notes=(*annotations.notes, *notes))
