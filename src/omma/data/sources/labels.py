"""What the names of folders, or the rows of a table, say about labels, splits and texts of images."""

import io
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from omma.core.errors import line
from omma.data.sources import captions

log = logging.getLogger(__name__)

CAPTIONS, NUMBERED = ("text", "texts", "caption", "captions"), 100  # columns: text, caption0, caption1, ...
SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "testing", "val", "valid", "validation", "dev", "eval"), "test"
)


@dataclass(frozen=True, kw_only=True)
class Known:
    """Columns of the `Images` promise, each None where nothing is known."""

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    splits: np.ndarray | None = None
    text: pa.LargeListArray | None = None  # each image's captions; null for one that is no valid UTF-8


def encode(values: Iterable, names: Iterable | None = None) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Codes 0 .. k-1 and class names of labels given as numbers or strings.

    Missing, empty and negative labels become -1; None if nothing is left. Numbers sort as numbers. `names`:
    what to call the class of each row, where that is told apart from its label.
    """
    rows = ["" if value is None else str(value) for value in values]
    distinct = set(rows) - {"", "nan"}
    try:
        numbers = {text: _whole(text) for text in distinct}
        rows = [str(numbers.get(text, text)) for text in rows]
        order = [str(number) for number in sorted(set(numbers.values())) if number >= 0]
    except ValueError:
        order = sorted(distinct)
    if not order:
        return None, ()
    code = {text: k for k, text in enumerate(order)}
    called = {text: text for text in order}
    if names is not None:
        called |= {text: str(name) for text, name in zip(rows, names) if name}
    return np.array([code.get(text, -1) for text in rows], np.int64), tuple(called[text] for text in order)


def _whole(text: str) -> int:
    """A label's number; a column with gaps may hold "2.0" for 2. ValueError for anything else."""
    whole, _, rest = text.partition(".")
    if rest.strip("0"):
        raise ValueError(f"{text} is no whole number")
    return int(whole)


def from_folders(folders: list[str], counts: list[int]) -> Known:
    """Read names of folders, in which `counts` images lie, in the images' order.

    A level that is everywhere train, test, val, valid or validation is the split. Then the folder that holds
    an image names its class, if there are at least two such folders and two images for each on average, no
    image lies outside of them, and none of them lies within another.
    """
    parts = [folder.split("/") if folder else [] for folder in folders]
    if not parts:
        return Known()
    # the split may lie within a folder that wraps everything
    common = [level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts))]
    level = next((k for k, part in enumerate(common) if part.lower() in SPLITS), len(common))
    splits = None
    if all(len(part) > level and part[level].lower() in SPLITS for part in parts):
        splits = np.repeat([SPLITS[part[level].lower()] for part in parts], counts).astype("U5")
        level += 1
    below = {tuple(part[level:]) for part in parts}
    nested = any(part[:k] in below for part in below for k in range(len(part)))
    names = sorted({part[-1] for part in below if part})
    if nested or () in below or len(names) < 2 or sum(counts) < 2 * len(names):
        return Known(splits=splits)
    code = {name: k for k, name in enumerate(names)}
    labels = np.repeat(np.array([code[part[-1]] for part in parts], np.int64), counts)
    return Known(labels=labels, classes=tuple(names), splits=splits)


def read_csv(source: str | io.BytesIO, name: str) -> pa.Table:
    """A .csv as a table; ValueError if it is none."""
    # as text: "007" is a class name, and a caption of digits is still a caption
    kinds = dict.fromkeys(("path", "label", "split", "class", "class_name", "name"), pa.large_string())
    # as bytes: one caption that is no valid UTF-8 must not end it all
    kinds |= dict.fromkeys((f"{c}{k}" for c in CAPTIONS for k in ("", *range(NUMBERED))), pa.large_binary())
    try:
        return pacsv.read_csv(
            source,
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(column_types=kinds),
        )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name}: not a readable table ({line(error)}); write it anew, in UTF-8") from None


def strings(table: pa.Table, name: str) -> pa.LargeStringArray:
    """One column as text."""
    column = table[name].cast(pa.large_string()).combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def from_labels_csv(table: pa.Table, paths: pa.LargeStringArray) -> Known:
    """A labels.csv, whose rows name some of the images by `path`, in any order."""
    if "path" not in table.column_names:
        return Known()
    rows = pc.index_in(paths, value_set=strings(table, "path"))  # pyright: ignore[reportAttributeAccessIssue]
    return from_table(table.take(rows)) if rows.null_count < len(rows) else Known()


def from_table(table: pa.Table) -> Known:
    """Labels (`label`, or `class` or `name`), splits and captions from a table whose rows are the images.

    Beside `label`, `class`, `class_name` or `name` give the classes' names. An image without a split trains.
    """
    columns = table.column_names
    labels, classes, splits = None, (), None
    name = next((column for column in ("class", "class_name", "name") if column in columns), None)
    names = None if name is None else strings(table, name).to_pylist()
    if "label" in columns:
        labels, classes = encode(strings(table, "label").to_pylist(), names)
    elif names is not None:
        labels, classes = encode(names)
    if "split" in columns:
        given = strings(table, "split").to_pylist()
        sides = [SPLITS.get(side.strip().lower()) if side else "train" for side in given]
        if None in sides:
            odd = given[sides.index(None)]
            log.warning("split %r is none of train, val and test: the column `split` is ignored", odd)
        else:
            splits = np.array(sides, "U5")
    return Known(labels=labels, classes=classes, splits=splits, text=captions.from_table(table))
