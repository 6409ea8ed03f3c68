"""One column of a table as text: what stands for a label, a path or a split, whatever its type."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_nested(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, records or of an extension type."""
    return pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType)


def are_numbers(kind: pa.DataType) -> bool:
    """Whether values of this type are numbers, or true and false."""
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def shown(text: str, longest: int = 80) -> str:
    """A text for a message: one line, not longer than that, control characters as escapes."""
    cut = text if len(text) <= longest else text[:longest] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names of columns, or values of one, for a message."""
    names = list(names)
    return ", ".join([shown(name, 30) for name in names[:most]] + ["..."] * (len(names) > most))


def texts(table: pa.Table, name: str, lenient: bool = False) -> pa.LargeStringArray:
    """One column as text, null where it has no value: a list of one value is that value.

    A list of numbers 0 with a single 1, of one length in all rows, is the 1's position. Raises ValueError for
    lists of several values (multi-label), records, and bytes that are not text (lenient: null for those).
    """
    column = plain(table[name])
    if pa.types.is_large_list(column.type):
        column = _single(column, name)
    elif is_nested(column.type):
        raise ValueError(f"column {name} holds lists or records ({column.type}); write one value a row")
    return _as_text(column, name, lenient)


def plain(column: pa.ChunkedArray) -> Any:
    """The column in one piece and of a plain type: no dictionary, extension or view, lists as large lists.

    Raises pyarrow's errors for types that it cannot convert.
    """
    if isinstance(column.type, pa.BaseExtensionType):
        storage = column.type.storage_type
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], storage)  # pyright: ignore
    kind = _plain_type(column.type)
    if kind != column.type:
        column = column.cast(kind)
    merged = column.combine_chunks()
    return pa.concat_arrays(merged.chunks) if isinstance(merged, pa.ChunkedArray) else merged


def _plain_type(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or "list_view" in str(kind)
    ):
        return pa.large_list(_plain_type(kind.value_type))
    if types.is_string(kind) or types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.large_binary()
    return kind


def _single(column: Any, name: str) -> Any:
    counts = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = column.flatten()
    if counts.size and counts.max() > 1:
        codes = _one_hot_column(column, counts)
        if codes is not None:
            return codes
        row = int(np.argmax(counts > 1))
        raise ValueError(
            f"column {name}: row {row + 1} has {counts[row]} values (multi-label); an image can have one: "
            "keep one a row"
        )
    where = np.where(counts == 1, np.cumsum(counts) - 1, -1)
    return values.take(pa.array(where, pa.int64(), mask=where < 0))


def _one_hot_column(column: Any, counts: np.ndarray) -> Any:
    """The positions of the ones if every list is one-hot (or null); otherwise None."""
    width, kind = int(counts.max()), column.type.value_type
    if not are_numbers(kind) or not np.isin(counts, (0, width)).all() or column.flatten().null_count:
        return None
    codes = one_hot(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width))
    if codes is None:
        return None
    out = np.full(len(counts), -1)
    out[counts > 0] = codes
    return pa.array(out, pa.int64(), mask=out < 0)


def one_hot(values: np.ndarray) -> np.ndarray | None:
    """The column of the single 1 of each row of [n, k], k > 1, of zeros and ones; None if any is not so."""
    if values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind not in "buif":
        return None
    fits = ((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all()
    return values.argmax(axis=1) if fits else None


def _as_text(column: Any, name: str, lenient: bool) -> pa.LargeStringArray:
    kind = column.type
    if pa.types.is_floating(kind):
        column = column.cast(pa.float32()) if pa.types.is_float16(kind) else column
        column = pc.if_else(pc.is_nan(column), None, pc.add(column, pa.scalar(0, column.type)))  # pyright: ignore
    elif pa.types.is_large_string(kind):
        column = column.cast(pa.large_binary())  # a file may claim UTF-8 wrongly
    try:
        return column.cast(pa.large_string())
    except pa.ArrowInvalid:
        if lenient:
            return pa.array(
                [each if _is_text(each) else None for each in column.to_pylist()], pa.large_string()
            )
        row = next(k for k, value in enumerate(column.to_pylist()) if not _is_text(value))
        raise ValueError(
            f"column {name}: row {row + 1} is not valid UTF-8; save the table in UTF-8"
        ) from None
    except pa.ArrowNotImplementedError:
        raise ValueError(f"column {name} holds {kind}, no text or number; write one value a row") from None


def _is_text(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def flat(name: str, column: pa.ChunkedArray) -> dict[str, Any]:
    """The column by its name; lists of numbers as the columns name0, name1, ..., which a .csv can hold."""
    if not pa.types.is_large_list(column.type):
        return {name: column}
    rows = column.to_pylist()
    width = max((len(row) for row in rows if row is not None), default=0)
    cells = [[*(row or ()), *[None] * (width - len(row or ()))] for row in rows]
    return {f"{name}{k}": pa.array([row[k] for row in cells], column.type.value_type) for k in range(width)}
