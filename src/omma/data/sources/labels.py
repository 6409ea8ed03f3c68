"""Read labels, splits and captions of images from the names of folders or the rows of a table."""

import io
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
class Annotations:
    """Labels, splits and captions of images, as in `Images`; None where there are none."""

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    splits: np.ndarray | None = None
    text: pa.LargeListArray | None = None  # each image's captions; null for one that is not valid UTF-8
    notes: tuple[str, ...] = ()  # what to know of how labels were read, and why any were not


def encode(values: Iterable, names: Iterable | None = None) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Encode labels (numbers or strings) as 0 .. k-1; returns the codes and the classes' names.

    Missing, empty and negative labels become -1; None if no other label is left. Numbers sort as numbers.
    `names`: the class name of each row, if it differs from the label.
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
    class_name = {text: text for text in order}
    if names is not None:
        class_name |= {text: str(name) for text, name in zip(rows, names) if name}
    return np.array([code.get(text, -1) for text in rows], np.int64), tuple(
        class_name[text] for text in order
    )


def _whole(text: str) -> int:
    """A label as an integer; a column with missing values may hold "2.0" for 2. ValueError for all else."""
    whole, _, rest = text.partition(".")
    if rest.strip("0"):
        raise ValueError(f"{text} is no whole number")
    return int(whole)


def read_csv(source: str | io.BytesIO, name: str) -> pa.Table:
    """Read a .csv as a table; ValueError if it cannot be read."""
    # as text: "007" is a class name, and a caption of digits is still a caption
    kinds = dict.fromkeys(("path", "label", "split", "class", "class_name", "name"), pa.large_string())
    # as bytes: one caption that is not valid UTF-8 must not make the table unreadable
    kinds |= dict.fromkeys((f"{c}{k}" for c in CAPTIONS for k in ("", *range(NUMBERED))), pa.large_binary())
    try:
        return pacsv.read_csv(
            source,
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(column_types=kinds),
        )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name}: not a readable table ({line(error)}); save it again, in UTF-8") from None


def strings(table: pa.Table, name: str) -> pa.LargeStringArray:
    """One column as text."""
    column = table[name].cast(pa.large_string()).combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def from_labels_csv(table: pa.Table, paths: pa.LargeStringArray) -> Annotations:
    """Annotations from a labels.csv, whose rows name some of the images by `path`, in any order."""
    if "path" not in table.column_names:
        return Annotations()
    rows = pc.index_in(paths, value_set=strings(table, "path"))  # pyright: ignore[reportAttributeAccessIssue]
    return from_table(table.take(rows)) if rows.null_count < len(rows) else Annotations()


def from_table(table: pa.Table) -> Annotations:
    """Labels (`label`, or `class` or `name`), splits and captions from a table whose rows are the images.

    With a column `label`, `class`, `class_name` or `name` holds the classes' names. An image without a split
    is a training image.
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
        values = strings(table, "split").to_pylist()
        sides = [SPLITS.get(value.strip().lower()) if value else "train" for value in values]
        if None in sides:
            unknown = values[sides.index(None)]
            log.warning("split %r is none of train, val and test: the column `split` is ignored", unknown)
        else:
            splits = np.array(sides, "U5")
    return Annotations(labels=labels, classes=classes, splits=splits, text=captions.from_table(table))
