"""Captions of images: read them from a table, drop the unusable ones, and draw one for each image."""

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
SAMPLE = 200_000  # captions whose lengths are checked before training


def columns(names: Iterable[str]) -> list[str]:
    """Names of the columns that hold captions, in order: text, caption, captions, caption0, caption1, ..."""
    matches = [(m[1], int(m[2] or -1), name) for name in names if (m := COLUMN.fullmatch(name))]
    return [name for *_, name in sorted(matches)]


def from_table(table: pa.Table) -> pa.LargeListArray | None:
    """Each row's captions as a list of strings, in the columns' order; None if no column holds captions.

    A caption that is not valid UTF-8 becomes null; missing captions are omitted. Raises ValueError for a
    column that holds neither strings nor lists of strings.
    """
    rows: list[np.ndarray] = []
    values: list[pa.LargeStringArray] = []
    for name in columns(table.column_names):
        column = _whole(table[name])
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            row, column = _np(pc.list_parent_indices(column)), column.flatten()  # pyright: ignore
        else:
            row = np.arange(len(column))
        rows.append(row[_np(column.is_valid())])
        values.append(_strings(column.drop_null(), name))
    return _lists(rows, values, len(table)) if rows else None


def _whole(column: pa.ChunkedArray) -> Any:
    merged = column.combine_chunks()
    return pa.concat_arrays(merged.chunks) if isinstance(merged, pa.ChunkedArray) else merged


def _np(column: Any) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def _lists(rows: Sequence[np.ndarray], values: Sequence[Any], n: int) -> pa.LargeListArray:
    """Group the values by row; within a row they stay in order."""
    row = np.concatenate(rows).astype(np.int64)
    order = np.argsort(row, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))])
    flat = pa.concat_arrays(values).take(pa.array(order))
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)


def _strings(column: Any, name: str) -> pa.LargeStringArray:
    """The column as text; null where the bytes are not valid UTF-8."""
    kind = column.type
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):  # a file may claim UTF-8 wrongly
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


# ---------------------------------------------------------------- usable captions
@dataclass(frozen=True)
class Fit:
    """Which images have a usable caption, and how many captions were dropped."""

    has: Bool[np.ndarray, "n"]  # images with at least one usable caption
    unreadable: int  # captions that are not valid UTF-8
    empty: int  # captions of nothing but white space

    def notes(self) -> list[str]:
        """What was left out, one line for each reason."""
        notes = []
        if lacking := int((~self.has).sum()):
            notes.append(f"{lacking:,} of {len(self.has):,} images have no usable caption and are left out")
        for count, what in ((self.unreadable, "not valid UTF-8"), (self.empty, "empty")):
            if count:
                are = "captions are" if count > 1 else "caption is"
                notes.append(f"{count:,} {are} {what} and {are.split()[1]} not used")
        return notes


def fit(text: pa.LargeListArray) -> tuple[Fit, pa.LargeListArray]:
    """Statistics of the captions, and the usable ones: for each image a list, perhaps empty."""
    row = _np(pc.list_parent_indices(text)).astype(np.int64)  # pyright: ignore
    flat: Any = text.flatten()
    valid = _np(flat.is_valid())
    filled = _np(pc.not_equal(pc.utf8_trim_whitespace(flat), "").fill_null(False))  # pyright: ignore
    has = np.bincount(row[filled], minlength=len(text)) > 0
    usable = _lists([row[filled]], [flat.filter(pa.array(filled))], len(text))
    return Fit(has, int((~valid).sum()), int((valid & ~filled).sum())), usable


def sample(usable: pa.LargeListArray, seed: int = 0) -> list[str]:
    """All captions, or a random `SAMPLE` of them."""
    values: Any = usable.flatten()
    n = len(values)
    if n > SAMPLE:
        values = values.take(pa.array(np.sort(np.random.default_rng(seed).permutation(n)[:SAMPLE])))
    return values.to_pylist()


class Captions:
    """Draw one caption for each image of a batch, as tokens; every image must have at least one."""

    def __init__(self, usable: pa.LargeListArray, tokenizer: Tokenizer) -> None:
        self.usable = usable
        self.values: Any = usable.flatten()
        self.counts = _np(usable.value_lengths()).astype(np.int64)
        self.first = np.cumsum(self.counts) - self.counts
        self.tokenizer = tokenizer
        assert self.counts.all()

    def __call__(self, key: Key, read: Int[np.ndarray, "b"]) -> Int[Tensor, "b l"]:
        """Tokens of a caption of each image in `read`; the draw depends on (seed, epoch, index) alone.

        Padded to the longest caption, rounded up to a multiple of 8; no token attends to the padding.
        """
        drawn = (uniform(key, Stream.TEXT, 1)[:, 0] * self.counts[read]).astype(np.int64)
        rows = self.tokenizer(self.values.take(pa.array(self.first[read] + drawn)).to_pylist())
        return trimmed(rows, self.tokenizer.end)

    def notes(self) -> list[str]:
        """Lines that say how many captions are truncated, or unrepaired; none if there are none."""
        checked, context = sample(self.usable), self.tokenizer.context
        notes = self.tokenizer.unrepaired(checked)
        if cut := sum(not self.tokenizer.fits(each) for each in checked):
            of = f"{len(checked):,} captions" + " checked" * (len(checked) < len(self.values))
            notes.append(f"{cut:,} of {of} are longer than {context} tokens and are cut")
        return notes
