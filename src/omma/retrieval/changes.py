"""What differs between an index and the images as they are now: which to embed, and whose vectors still hold.

A file of the same path, size and time of modification is taken to be as it was. Others are known by a hash
of their content, so a file that was renamed or touched is not embedded again.
"""

import contextlib
import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from omma.core.protocols import BadImage, Images
from omma.data.sources import label_sets
from omma.data.sources.columns import is_nested
from omma.features.table import as_text
from omma.retrieval.manifest import HASH, LABEL, OWN, PATH, SIZE, TIME
from omma.retrieval.store import Index

SETTLED = 2 * 10**9  # ns that a file must be unchanged before its time can tell that it is the same
THREADS = 8  # files hashed at a time
SPLIT = "split"


@dataclass(frozen=True)
class State:
    """The images of a collection as they are now: what an index keeps of them beside their vectors.

    rows: which images of the collection these are; of a path that is listed twice the first.
    """

    images: Images
    rows: Int[np.ndarray, "n"]
    table: pa.Table  # path, label, _size, _time, and the collection's columns
    twice: int  # images left out since their paths are listed before

    @classmethod
    def of(cls, images: Images) -> "State":
        paths = [as_text(images.path(i)) for i in range(len(images))]
        first: dict[str, int] = {}
        for row, path in enumerate(paths):
            first.setdefault(path, row)
        rows = np.fromiter(first.values(), np.int64, len(first))
        sizes, times = _sizes_and_times(images)
        times = np.where(times < time.time_ns() - SETTLED, times, 0)
        columns = {
            PATH: pa.array(paths, pa.string()),
            LABEL: _labels(images),
            SIZE: pa.array(sizes),
            TIME: pa.array(times),
        } | _others(images)
        table = pa.table(columns)
        if len(rows) < len(paths):
            table = table.take(pa.array(rows))
        return cls(images, rows, table, len(paths) - len(rows))

    def hashes(self, at: Int[np.ndarray, "m"]) -> list[bytes | None]:
        """Hashes of the content of these rows; None where it cannot be read."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda row: _hash(self.images, int(row)), self.rows[at]))


@dataclass(frozen=True)
class Changes:
    """What to do to an index. `at` counts the state's rows, `old` the index's."""

    embed: Int[np.ndarray, "e"]  # at: new or changed images
    embed_old: Int[np.ndarray, "e"]  # old: the rows that they replace; -1: none
    reuse: Int[np.ndarray, "r"]  # at: images whose content is known, of another path, time or label
    reuse_old: Int[np.ndarray, "r"]  # old: whose vectors they take
    gone: Int[np.ndarray, "g"]  # old: rows to take out with the first commit
    hashes: dict[int, bytes]  # of rows of the state, as far as they were needed
    kept: int
    added: int
    changed: int
    moved: int  # of another path, with the content of an image that is known
    removed: int  # paths that are no longer there


def compare(index: Index | None, state: State) -> Changes:
    """What has changed since an index was written; None: all is new."""
    count = len(state.table)
    none = np.zeros(0, np.int64)
    if index is None or not len(index):
        everything = np.arange(count)
        old = np.full(count, -1)
        return Changes(everything, old, none, none, none, {}, 0, count, 0, 0, 0)
    before = index.table
    place = pc.index_in(state.table[PATH], value_set=before[PATH].combine_chunks())  # pyright: ignore
    old = place.combine_chunks().fill_null(-1).to_numpy().astype(np.int64)
    at = np.flatnonzero(old >= 0)
    same = np.zeros(count, bool)
    known_time = state.table[TIME].to_numpy()[at] != 0
    same[at] = known_time
    for name in (SIZE, TIME):
        same[at] &= state.table[name].to_numpy()[at] == before[name].to_numpy()[old[at]]
    described = np.zeros(count, bool)  # with the same label and columns
    described[at] = _equal_columns(before.take(pa.array(old[at])), state.table.take(pa.array(at)))
    unsure = np.flatnonzero(~same)
    hashes = {int(row): value for row, value in zip(unsure, state.hashes(unsure)) if value is not None}
    row_of = {value: row for row, value in enumerate(before[HASH].to_pylist()) if value is not None}
    own_hash = before[HASH].take(pa.array(old[unsure], mask=old[unsure] < 0)).to_pylist()
    source = np.where(same, old, -1)  # the row whose vector an image has
    for row, known in zip(unsure, own_hash):
        value = hashes.get(int(row))
        source[row] = -1 if value is None else old[row] if known == value else row_of.get(value, -1)
    kept = same & described
    reuse, embed = np.flatnonzero((source >= 0) & ~kept), np.flatnonzero(source < 0)
    dropped = np.setdiff1d(np.arange(len(before)), old[at])
    return Changes(
        embed=embed,
        embed_old=old[embed],
        reuse=reuse,
        reuse_old=source[reuse],
        gone=np.union1d(dropped, old[reuse][old[reuse] >= 0]),
        hashes=hashes,
        kept=int(kept.sum()) + int((old[reuse] == source[reuse]).sum()),
        added=int((old[embed] < 0).sum()),
        changed=int((old[embed] >= 0).sum()),
        moved=int((old[reuse] != source[reuse]).sum()),
        removed=len(dropped),
    )


def _sizes_and_times(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and ns; -1 and 0 where there are no files to ask."""
    stats = getattr(getattr(images, "identity", None), "stats", None)
    if stats is None:
        return np.full(len(images), -1), np.zeros(len(images), np.int64)
    return stats[:, 0], stats[:, 1]


def _labels(images: Images) -> pa.Array:
    """The name of the class; of several in one text, by semicolons."""
    classes, sets = images.classes, label_sets.of(images)
    if sets is not None:
        rows = [
            None if (row < 0).all() else ";".join(classes[c] for c in np.flatnonzero(row > 0)) for row in sets
        ]
        return pa.array(rows, pa.string())
    if images.labels is None:
        return pa.nulls(len(images), pa.string())
    return pa.array([classes[c] if c >= 0 else None for c in images.labels.tolist()], pa.string())


def _others(images: Images) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The columns of a table of the images, but lists and those of names that omma uses; and the split."""
    table: pa.Table | None = getattr(images, "columns", None)
    found: dict[str, pa.Array | pa.ChunkedArray] = {}
    if table is not None:
        names = [name for name in table.column_names if name not in OWN and not name.startswith("_")]
        found = {name: _as_numbers(table[name]) for name in names if not is_nested(table[name].type)}
    if images.splits is not None and SPLIT not in found:
        found[SPLIT] = pa.array(images.splits.tolist(), pa.string())
    return found


def _as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of texts that all are numbers as such, since a .csv has nothing but texts; "" is null.

    Codes such as 007 stay texts.
    """
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    plain = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)  # pyright: ignore
    coded = pc.match_substring_regex(plain, r"^[-+]?0\d|[^-+.\deE]")  # pyright: ignore
    if plain.null_count == len(plain) or pc.any(coded).as_py():  # pyright: ignore
        return column
    for kind in (pa.int64(), pa.float64()):
        with contextlib.suppress(pa.ArrowInvalid):
            return plain.cast(kind)
    return column


def _hash(images: Images, row: int) -> bytes | None:
    """BLAKE2b of a file's bytes, or of an array's values."""
    try:
        if getattr(images, "encoded", False):
            data = images.content(row)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            values = images.read(row)
            data = f"{values.dtype} {values.shape} ".encode() + values.tobytes()
    except BadImage:
        return None
    return hashlib.blake2b(data, digest_size=16).digest()


def _equal_columns(before: pa.Table, now: pa.Table) -> Bool[np.ndarray, "n"]:
    """Which rows have the same label and the same values of the collection's columns."""
    names = [name for name in now.column_names if name == LABEL or name not in OWN]
    had = [name for name in before.column_names if name == LABEL or name not in OWN]
    if set(names) != set(had) or any(before[name].type != now[name].type for name in names):
        return np.zeros(len(now), bool)
    equal = np.ones(len(now), bool)
    for name in names:
        equal &= _equal(before[name], now[name])
    return equal


def _equal(before: pa.ChunkedArray, now: pa.ChunkedArray) -> Bool[np.ndarray, "n"]:
    if pa.types.is_floating(now.type):  # so that NaN equals NaN
        before, now = before.cast(pa.string()), now.cast(pa.string())
    same = pc.equal(before, now).fill_null(False)  # pyright: ignore
    both = pc.and_(before.is_null(), now.is_null())  # pyright: ignore
    return pc.or_(same, both).to_numpy()  # pyright: ignore


def taken(table: pa.Table, at: Sequence[int] | Int[np.ndarray, "n"]) -> dict[str, pa.Array | pa.ChunkedArray]:
    """Some rows as columns by name."""
    part = table.take(pa.array(np.asarray(at, np.int64)))
    return {name: part[name] for name in part.column_names}
