"""Captions of images: read from a table's columns, made fit for use, and drawn one an image."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int
from torch import Tensor

from omma.core.errors import line
from omma.core.protocols import Key, Tokenizer
from omma.core.random import Stream, uniform
from omma.data.text_tokenizer import trimmed

COLUMN = re.compile(r"(text|caption)s?(\d*)")
COUNTED = 200_000  # captions whose length is looked at before training


def columns(names: Iterable[str]) -> list[str]:
    """Those of a table's columns that hold captions: text, caption, captions, caption0, caption1, ..."""
    found = [(m[1], int(m[2] or -1), name) for name in names if (m := COLUMN.fullmatch(name))]
    return [name for *_, name in sorted(found)]


def from_table(table: pa.Table) -> pa.LargeListArray | None:
    """Each row's captions as a list of strings, in the columns' order; None without such columns.

    A caption that is no valid UTF-8 is null, one that the row does not have is left out. A column holds
    strings or lists of them. Raises ValueError for one that holds neither.
    """
    rows: list[np.ndarray] = []
    values: list[pa.LargeStringArray] = []
    for name in columns(table.column_names):
        column = _whole(table[name])
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            row, column = _np(pc.list_parent_indices(column)), column.flatten()  # pyright: ignore
        else:
            row = np.arange(len(column))
        given = _np(column.is_valid())
        rows.append(row[given])
        values.append(_strings(column.drop_null(), name))
    return _lists(rows, values, len(table)) if rows else None


def _whole(column: pa.ChunkedArray) -> Any:
    merged = column.combine_chunks()
    return pa.concat_arrays(merged.chunks) if isinstance(merged, pa.ChunkedArray) else merged


def _np(column: Any) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def _lists(rows: Sequence[np.ndarray], values: Sequence[Any], n: int) -> pa.LargeListArray:
    """Lists of the values by their rows; those of a row in the order in which they are given."""
    row = np.concatenate(rows).astype(np.int64)
    order = np.argsort(row, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))])
    flat = pa.concat_arrays(values).take(pa.array(order))
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)


def _strings(column: Any, name: str) -> pa.LargeStringArray:
    """As text; null where the bytes are no UTF-8."""
    kind = column.type
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):  # which files may lie about
            column = column.cast(pa.large_binary())
        return column.cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.array([_decoded(each) for each in column.to_pylist()], pa.large_string())
    except pa.ArrowNotImplementedError as error:
        raise ValueError(f"column {name}: captions are strings or lists of them ({line(error)})") from None


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


# ---------------------------------------------------------------- for use
@dataclass(frozen=True)
class Fit:
    """What of some images' captions can be used."""

    has: Bool[np.ndarray, "n"]  # which images have any
    unreadable: int  # captions that are no valid UTF-8
    empty: int  # captions of nothing but white space

    def notes(self) -> list[str]:
        """What was left out, in lines."""
        said = []
        if lacking := int((~self.has).sum()):
            said.append(f"{lacking:,} of {len(self.has):,} images have no usable caption and are left out")
        for count, what in ((self.unreadable, "not valid UTF-8"), (self.empty, "empty")):
            if count:
                are = "captions are" if count > 1 else "caption is"
                said.append(f"{count:,} {are} {what} and {are.split()[1]} not used")
        return said


def fit(text: pa.LargeListArray) -> tuple[Fit, pa.LargeListArray]:
    """What can be used of captions, and those that can: a list an image, perhaps an empty one."""
    row = _np(pc.list_parent_indices(text)).astype(np.int64)  # pyright: ignore
    flat: Any = text.flatten()
    valid = _np(flat.is_valid())
    filled = _np(pc.not_equal(pc.utf8_trim_whitespace(flat), "").fill_null(False))  # pyright: ignore
    has = np.bincount(row[filled], minlength=len(text)) > 0
    usable = _lists([row[filled]], [flat.filter(pa.array(filled))], len(text))
    return Fit(has, int((~valid).sum()), int((valid & ~filled).sum())), usable


def sample(usable: pa.LargeListArray, seed: int = 0) -> list[str]:
    """All captions, or `COUNTED` of them."""
    values: Any = usable.flatten()
    n = len(values)
    if n > COUNTED:
        values = values.take(pa.array(np.sort(np.random.default_rng(seed).permutation(n)[:COUNTED])))
    return values.to_pylist()


class Captions:
    """Draws a caption for each image of a batch, as tokens; each image must have one."""

    def __init__(self, usable: pa.LargeListArray, tokenizer: Tokenizer) -> None:
        self.usable = usable
        self.values: Any = usable.flatten()
        self.counts = _np(usable.value_lengths()).astype(np.int64)
        self.first = np.cumsum(self.counts) - self.counts
        self.tokenizer = tokenizer
        assert self.counts.all()

    def __call__(self, key: Key, read: Int[np.ndarray, "b"]) -> Int[Tensor, "b l"]:
        """Tokens of captions of the images `read`, a function of (seed, epoch, index) alone.

        As many columns as the longest needs, to a multiple of 8: what follows a caption's end is never seen.
        """
        drawn = (uniform(key, Stream.TEXT, 1)[:, 0] * self.counts[read]).astype(np.int64)
        rows = self.tokenizer(self.values.take(pa.array(self.first[read] + drawn)).to_pylist())
        return trimmed(rows, self.tokenizer.end)

    def cut(self) -> list[str]:
        """How many captions are cut, in a line if there are any."""
        some, context = sample(self.usable), self.tokenizer.context
        if cut := sum(not self.tokenizer.fits(each) for each in some):
            of = f"{len(some):,} captions" + " looked at" * (len(some) < len(self.values))
            return [f"{cut:,} of {of} are longer than {context} tokens and are cut"]
        return []
