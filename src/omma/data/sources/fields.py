"""Numbers that come with each image, read from columns of a table (`core.sequences.Field`)."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from omma.core.protocols import Field
from omma.core.words import count
from omma.data.sources.columns import is_nested, listed, plain, shown, texts
from omma.data.sources.indexed import IndexedImages

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NO_VALUE = -1  # the code of a missing name


def read(images: IndexedImages, field: Field) -> Float[np.ndarray, "n d"] | Int[np.ndarray, "n d"] | None:
    """The field's numbers of each image: float32, NaN where missing; None where an optional field lacks.

    Of kind "names": int64 codes of the values as text, from 0 in the order of `names`, -1 where missing. Read
    codes of the whole collection, not of a part: they count the values that occur.
    A cell is missing if it is empty, no number, or not finite, also as float32. Raises ValueError for columns
    that lack, that hold texts or lists of different lengths, or other than `field.size` numbers; and, with
    missing="refuse", for the first image without a value.
    """
    columns = _columns(images, field)
    if columns is None:
        return None
    assert images.columns is not None
    parts = [
        _codes(images, name)[0] if field.kind == "names" else _numbers(images, field, name)
        for name in columns
    ]
    values = np.concatenate(parts, axis=1)
    if field.size is not None and values.shape[1] != field.size:
        raise ValueError(
            f"{images.source}: the field {field.name} has {count(values.shape[1], 'number')} an image (in "
            f"{_span(columns)}), and {field.size} {'are' if field.size > 1 else 'is'} required"
        )
    if field.missing == "refuse":
        _refuse_missing(images, field, columns, parts)
    return values


def names(images: IndexedImages, field: Field) -> tuple[str, ...]:
    """The values that the codes of a field of kind "names" stand for, sorted; () where the field lacks."""
    columns = _columns(images, field)
    return () if columns is None else _codes(images, columns[0])[1]


def describe(images: IndexedImages, field: Field) -> str:
    """The field in a line: how many numbers an image, from which columns, and how many images lack some."""
    columns, values = _columns(images, field), read(images, field)
    if columns is None or values is None:
        return f"{field.name}: none, {images.source} has no such column"
    missing = int(_missing(values).any(axis=1).sum())
    what = f"{len(names(images, field))} names" if field.kind == "names" else count(values.shape[1], "number")
    line = f"{field.name}: {what} an image" if field.kind == "numbers" else f"{field.name}: one of {what}"
    line += f", from {_span(columns)}" if columns != [field.name] else ""
    return line + (f"; missing for {missing:,} of {count(len(values), 'image')}" if missing else "")


# ---------------------------------------------------------------- which columns
def _columns(images: IndexedImages, field: Field) -> list[str] | None:
    """Names of the field's columns, in order; None where an optional field lacks."""
    known = [] if images.columns is None else images.columns.column_names
    if field.columns:
        lacking = [name for name in field.columns if name not in known]
        if not lacking:
            return list(field.columns)
        what = f"no column {lacking[0]}"
    elif field.name in known:
        return [field.name]
    elif numbered := _numbered(images.source, field.name, known):
        return numbered
    else:
        what = f"no column {field.name}, nor {field.name}0, {field.name}1, ..."
    if field.optional:
        return None
    there = f"its columns are {listed(known)}" if known else "give a table with it (docs/input.md)"
    raise ValueError(f"{images.source}: {what}, for the field {field.name}; {there}")


def _numbered(source: str, name: str, known: list[str]) -> list[str]:
    """The columns name0, name1, ... in the order of their numbers; ValueError for a gap."""
    matches = [
        (int(m[1]), each) for each in known if (m := re.fullmatch(re.escape(name) + r"([0-9]+)", each))
    ]
    matches.sort()
    numbers = [number for number, _ in matches]
    for k, number in enumerate(numbers):
        if number != k:
            wrong = f"{name}{k} is missing" if number > k else f"two columns have the number {number}"
            raise ValueError(
                f"{source}: columns {matches[0][1]} to {matches[-1][1]} of the field {name}: {wrong}; "
                f"number them {name}0, {name}1, ... without a gap"
            )
    return [each for _, each in matches]


def _span(columns: list[str]) -> str:
    if len(columns) < 4:
        return f"column{'s' * (len(columns) > 1)} {', '.join(columns)}"
    return f"columns {columns[0]} to {columns[-1]}"


# ---------------------------------------------------------------- values
def _numbers(images: IndexedImages, field: Field, name: str) -> Float[np.ndarray, "n d"]:
    """A column as float32, NaN where missing."""
    assert images.columns is not None
    column = plain(images.columns[name])
    if pa.types.is_large_list(column.type) and not is_nested(column.type.value_type):
        values = _lists(images, field, name, column)
    else:
        values = _floats(images.source, field, name, column)[:, None]
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    return values


def _lists(images: IndexedImages, field: Field, name: str, column: Any) -> Float[np.ndarray, "n d"]:
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    valid &= lengths > 0  # an empty list is missing
    width = int(lengths[valid][0]) if valid.any() else field.size or 1
    if (other := valid & (lengths != width)).any():
        first, row = int(np.flatnonzero(valid)[0]), int(np.flatnonzero(other)[0])
        raise ValueError(
            f"{images.source}: lists of different lengths in column {name}: {count(width, 'number')} of "
            f"{images.path(first)} and {lengths[row]} of {images.path(row)}; make them equal"
        )
    values = np.full((len(column), width), np.nan)
    values[valid] = _floats(images.source, field, name, column.flatten()).reshape(-1, width)
    return values


def _floats(source: str, field: Field, name: str, column: Any) -> Float[np.ndarray, "n"]:
    """A column of plain values as float64, NaN for what is no number; ValueError if most are none."""
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return _parsed(source, field, name, column)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise ValueError(f"{source}: column {name} holds {kind}, and the field {field.name} is of numbers")
    return column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False).copy()


def _parsed(source: str, field: Field, name: str, column: Any) -> Float[np.ndarray, "n"]:
    cells = texts(pa.table({name: column}), name, lenient=True).dictionary_encode()
    different = [(value or "").strip() for value in cells.dictionary.to_pylist()]
    # the last is for null
    numbers = np.array(
        [float(value) if _NUMBER.fullmatch(value) else np.nan for value in different] + [np.nan]
    )
    code = cells.indices.fill_null(len(different)).to_numpy(zero_copy_only=False).astype(np.int64)
    words = np.array([bool(value) and not _NUMBER.fullmatch(value) for value in different] + [False])
    filled = np.array([bool(value) for value in different] + [False])
    if 2 * words[code].sum() > filled[code].sum():
        first = shown(different[int(code[words[code]][0])], 40)
        raise ValueError(
            f"{source}: column {name} holds texts such as {first!r}, and the field {field.name} is of "
            "numbers; write numbers"
        )
    return numbers[code]


def _codes(images: IndexedImages, name: str) -> tuple[Int[np.ndarray, "n 1"], tuple[str, ...]]:
    """Each image's value as a code, -1 where it has none; and the values that the codes stand for, sorted."""
    assert images.columns is not None
    try:
        values = [(value or "").strip() for value in texts(images.columns, name).to_pylist()]
    except ValueError as error:
        raise ValueError(f"{images.source}: {error}") from None
    known = tuple(sorted(set(values) - {""}))
    code = {value: k for k, value in enumerate(known)}
    return np.array([code.get(value, _NO_VALUE) for value in values], np.int64)[:, None], known


def _missing(values: np.ndarray) -> np.ndarray:
    return np.isnan(values) if values.dtype.kind == "f" else values == _NO_VALUE


def _refuse_missing(images: IndexedImages, field: Field, columns: list[str], parts: list[np.ndarray]) -> None:
    lacking = np.stack([_missing(part).any(axis=1) for part in parts])
    rows = np.flatnonzero(lacking.any(axis=0))
    if not len(rows):
        return
    row = int(rows[0])
    column = columns[int(lacking[:, row].argmax())]
    assert images.columns is not None
    cell = images.columns[column][row].as_py()
    text = cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)
    is_empty = cell is None or not text.strip()
    what = "is empty" if is_empty else f"holds {shown(text, 40)!r}, no finite number"
    more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
    kind = "name" if field.kind == "names" else "number"
    raise ValueError(
        f"{images.source}: column {column} {what} for {images.path(row)}{more}; the field {field.name} needs "
        f"a {kind} for every image: fill it in, or leave these rows out"
    )
