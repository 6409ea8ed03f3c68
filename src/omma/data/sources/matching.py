"""Find the images that the rows of a table beside them name: labels.csv and the like."""

import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omma.core.errors import line
from omma.core.words import count
from omma.data.sources import label_sets
from omma.data.sources.columns import listed, shown, texts
from omma.data.sources.labels import Annotations, images
from omma.data.sources.table_labels import from_table
from omma.data.sources.tables import IMAGE_NAMES, LABELS, read_table

TABLES = ("labels.csv", "metadata.csv", "metadata.jsonl")  # read beside images: the first that is there
_SAMPLE = 1_000  # rows on which ways to read a path are compared
_AMBIGUOUS = -2


@dataclass(frozen=True)
class _Match:
    """Which row names which image."""

    column: str
    values: list[str | None]  # of that column
    images: np.ndarray  # int64 [rows]: the image that each row names, -1 for none, _AMBIGUOUS for several
    rows: np.ndarray  # int64 [images]: the first row that names each, -1 for none


def is_table(path: str) -> bool:
    """Whether a table of this name may say something of the images: at the top, or one folder below it."""
    return path.count("/") < 2 and path.rpartition("/")[2] in TABLES


def beside(paths: Sequence[str]) -> list[str]:
    """Names that a table beside the images may have: at the top, or in the one folder that holds them all."""
    return [*TABLES, *(f"{top}/{name}" for top in _common(paths)[:1] for name in TABLES)]


def from_beside(
    tables: Mapping[str, str | bytes], paths: pa.LargeStringArray, folders: Annotations, root: str
) -> Annotations:
    """Annotations from the first table beside the images, whose rows name some of them, in any order.

    What the table does not say (labels, split), the folders say. Notes count what matches nothing.
    tables: files or their content, by name. root: the folder or archive. Raises ValueError for a labels.csv
    that cannot be read.
    """
    name = next((name for name in beside(paths.to_pylist()) if name in tables), None) if tables else None
    if name is None:
        return folders
    source, below = tables[name], name.rpartition("/")[0]
    file = source if isinstance(source, str) else f"{root}/{name}"
    try:
        return _from_table(read_table(source, file), paths, folders, name, root, below)
    except ValueError as error:
        if name.endswith("labels.csv"):
            raise ValueError(line(error) if file in str(error) else f"{file}: {line(error)}") from None
        return _without(folders, f"{name} is not used: {line(error).removeprefix(f'{file}: ')}")


def _from_table(
    table: pa.Table, paths: pa.LargeStringArray, folders: Annotations, name: str, root: str, below: str
) -> Annotations:
    match = _best(table, paths, root, below)
    if match is None:
        columns = listed(table.column_names)
        return _without(folders, f"{name} is not used: it has no column `path` (there are {columns})")
    if not (match.rows >= 0).any():
        first = next(filter(None, match.values), "")
        return _without(
            folders,
            f"{name} is not used: none of its {count(len(table), 'row')} names an image "
            f"(the first: {shown(first)})",
        )
    taken = table.take(pa.array(match.rows, pa.int64(), mask=match.rows < 0))
    own = set(LABELS) & set(table.column_names) or name.endswith("labels.csv")
    read = from_table(taken, recognise=bool(own) or folders.labels is None)
    splits = folders.splits if read.splits is None else read.splits
    if not own and read.label_sets is None:
        notes = tuple(f"{name}: {note}" for note in (*read.notes, *_unmatched(match)))
        read = replace(read, labels=folders.labels, classes=folders.classes)
        return replace(read, splits=splits, notes=(*notes, *folders.notes))
    notes = [*read.notes, *_unmatched(match)]
    labels, sets = read.labels, read.label_sets
    if labels is not None:
        labels, more = _without_contradictions(labels, table, match)
        notes += [*more, *_unlabelled(labels < 0, paths)]
    elif sets is not None:
        sets, more = _without_contradictions(sets, table, match)
        notes += [*more, *_unlabelled(label_sets.unlabelled(sets), paths)]
    notes = tuple(f"{name}: {note}" for note in notes)
    return replace(read, labels=labels, label_sets=sets, splits=splits, notes=notes)


def _without(folders: Annotations, note: str) -> Annotations:
    used = "; the class folders are" if folders.labels is not None else ""
    return replace(folders, notes=(*folders.notes, note + used))


# ---------------------------------------------------------------- notes
def _unmatched(match: _Match) -> Iterator[str]:
    if match.column != "path":
        yield f"its column {match.column} names the images"
    for kind, one, many in (
        (-1, "names no image here", "name no image here"),
        (_AMBIGUOUS, "may name several images and is not used", "may name several images and are not used"),
    ):
        rows = np.flatnonzero(match.images == kind)
        if len(rows):
            what = many if len(rows) > 1 else one
            first = match.values[rows[0]] or "an empty cell"
            yield f"of {count(len(match.images), 'row')} {len(rows):,} {what} (the first: {shown(first)})"


def _unlabelled(missing: np.ndarray, paths: pa.LargeStringArray) -> Iterator[str]:
    rows = np.flatnonzero(missing)
    if len(rows):
        have = "have" if len(rows) > 1 else "has"
        first = paths[int(rows[0])].as_py()
        yield f"of {images(len(missing))} {len(rows):,} {have} no label (the first: {shown(first)})"


def _without_contradictions(
    labels: np.ndarray, table: pa.Table, match: _Match
) -> tuple[np.ndarray, list[str]]:
    """The labels or label sets, -1 where rows for one image differ in theirs."""
    again = np.flatnonzero(match.images >= 0)
    again = again[match.rows[match.images[again]] != again]
    if not len(again):
        return labels, []
    whole = from_table(table)
    of_rows = whole.labels if whole.label_sets is None else whole.label_sets
    assert of_rows is not None, "some rows have labels"
    unequal = of_rows[again] != of_rows[match.rows[match.images[again]]]
    differ = np.flatnonzero(unequal.reshape(len(again), -1).any(axis=1))
    rows = match.images[again[differ]]
    return contradicted(labels, rows, rows, [match.values[again[k]] or "" for k in differ])


def contradicted(
    labels: np.ndarray, of: np.ndarray, rows: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """The labels or label sets without those of `rows`, and a note; of: the image of each row."""
    if not len(rows):
        return labels, []
    labels = labels.copy()
    labels[rows] = -1
    n = len(np.unique(of))
    have = (
        "images have rows with different labels and count"
        if n > 1
        else "image has rows with different labels and counts"
    )
    return labels, [f"{n:,} {have} as unlabelled (the first: {shown(names[0])})"]


# ---------------------------------------------------------------- which row names which image
def _best(table: pa.Table, paths: pa.LargeStringArray, root: str, below: str) -> _Match | None:
    """The match by the first column that names an image; None if no column could."""
    match = None
    lower = {name.lower(): name for name in reversed(table.column_names)}
    for column in [lower[name] for name in IMAGE_NAMES if name in lower]:
        try:
            values = texts(table, column)
        except ValueError:
            continue
        new = _match(column, values, paths, root, below)
        if (new.rows >= 0).any():
            return new
        match = match or new
    return match


def _match(
    column: str, values: pa.LargeStringArray, paths: pa.LargeStringArray, root: str, below: str
) -> _Match:
    exact = pc.index_in(values, value_set=paths) if not below else None  # pyright: ignore
    if exact is not None and not exact.null_count:
        images = exact.to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        images = _search(values.to_pylist(), paths.to_pylist(), root, below)
    rows = np.full(len(paths), -1)
    named = np.flatnonzero(images >= 0)[::-1]
    rows[images[named]] = named  # the first row of several is written last
    return _Match(column, values.to_pylist(), images, rows)


def _search(values: list[str | None], paths: list[str], root: str, below: str) -> np.ndarray:
    """The image that each row names, by the way of reading paths that finds most of a sample of the rows."""
    rows = [_normal(value or "") for value in values]
    images = [_normal(path) for path in paths]
    sample = (
        [rows[k] for k in np.unique(np.linspace(0, max(len(rows) - 1, 0), _SAMPLE).astype(int))]
        if rows
        else []
    )
    best, most = np.full(len(rows), -1), 0
    keys: dict[Callable[[str], str], dict[str, int]] = {}
    for image_key, row_key in _KEYS:
        keys[image_key] = {}
        for k, path in enumerate(images):
            key = image_key(path)
            keys[image_key][key] = _AMBIGUOUS if key in keys[image_key] else k
        for moved in _moves(rows, images, root, below):
            rows_by_key = keys[image_key]
            count = sum(rows_by_key.get(row_key(moved(row)), -1) != -1 for row in sample if row)
            if count > most:
                most = count
                best = np.array(
                    [rows_by_key.get(row_key(moved(row)), -1) if row else -1 for row in rows], np.int64
                )
            if most == len(sample):
                return best
    return best


def _normal(path: str) -> str:
    path = unicodedata.normalize("NFC", path.strip()).replace("\\", "/")
    return posixpath.normpath(path) if path else ""


def _lower_extension(path: str) -> str:
    stem, dot, extension = path.rpartition(".")
    return f"{stem}.{extension.lower()}" if dot else path


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _same(path: str) -> str:
    return path


def _file(path: str) -> str:
    return path.rpartition("/")[2]


# keys of an image and of a row: the path; that without the extension's case; without the extension; the same
# for the name of the file alone, where the row is no more than that
_KEYS: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (_same, _same),
    (_lower_extension, _lower_extension),
    (_stem, _same),
    (_file, _same),
    (lambda path: _lower_extension(_file(path)), _lower_extension),
    (lambda path: _stem(_file(path)), _same),
)


def _moves(
    rows: Sequence[str], images: Sequence[str], root: str, below: str
) -> Iterator[Callable[[str], str]]:
    """Ways to make a row relative to the root: it may lie below or above the folder that rows count from."""
    if below:
        yield partial(posixpath.join, below)
    yield _same
    for top in dict.fromkeys((_normal(root), _normal(os.path.realpath(root)))):
        yield lambda row, start=f"{top}/": row.removeprefix(start)
    for k in range(1, len(_common(rows)) + 1):
        yield lambda row, k=k: row.split("/", k)[-1]
    shared = _common(images)
    for k in range(1, len(shared) + 1):
        yield partial(posixpath.join, "/".join(shared[:k]))


def _common(paths: Sequence[str]) -> list[str]:
    """The folders that all paths begin with."""
    paths = [path for path in paths if path]
    if not paths:
        return []
    first, last = min(paths).split("/")[:-1], max(paths).split("/")[:-1]
    same = [a == b for a, b in zip(first, last, strict=False)]
    return first[: same.index(False)] if False in same else first[: len(same)]
