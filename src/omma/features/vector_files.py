"""Readers of the files that hold vectors: Parquet, .npy and .npz, whole or by rows; see vectors.py."""

import contextlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omma.core.errors import line

BLOCK = 65_536  # rows in memory at a time, unless others are asked for
NAMES = ("vectors", "embeddings", "features")  # of the array in an .npz
COLUMN = "vector"


class Unusable(Exception):
    """Why a file holds no vectors; `VectorTable` makes one line of it."""


class ParquetRows:
    def __init__(self, file: Path) -> None:
        self.file = pq.ParquetFile(file, memory_map=False)
        schema = self.file.schema_arrow
        if COLUMN not in schema.names:
            raise Unusable(f"no column `{COLUMN}` among {', '.join(schema.names[:8])}")
        kind = schema.field(COLUMN).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not lists or not pa.types.is_floating(kind.value_type):
            raise Unusable(f"its column `{COLUMN}` holds {kind}, not lists of float")
        self.dim = kind.list_size if pa.types.is_fixed_size_list(kind) else self._first()

    def _first(self) -> int:
        """Dimensions of the first vector, in a column whose type does not say them."""
        for batch in self.file.iter_batches(1, columns=[COLUMN]):
            return len(batch.column(0)[0].values or ())
        return 0

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def has(self, *names: str) -> bool:
        return any(name in self.file.schema_arrow.names for name in names)

    def column(self, *names: str) -> pa.Array | None:
        for name in names:
            if self.has(name):
                column = self.file.read([name])[name]
                return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
        return None

    def origin(self) -> bytes:
        return (self.file.schema_arrow.metadata or {}).get(b"omma", b"{}")

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        for batch in self.file.iter_batches(rows, columns=[COLUMN]):
            yield self._numbers(batch.column(0))

    def take(self, wanted: np.ndarray) -> np.ndarray:
        """Only those groups of rows are read that hold some of the wanted ones, one at a time."""
        sizes = [self.file.metadata.row_group(k).num_rows for k in range(self.file.num_row_groups)]
        edges = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        found = [np.zeros((0, self.dim), np.float32)]
        for group in np.unique(np.searchsorted(edges, wanted, side="right") - 1):
            inside = wanted[(wanted >= edges[group]) & (wanted < edges[group + 1])] - edges[group]
            table = self.file.read_row_group(int(group), columns=[COLUMN])
            for chunk in table[COLUMN].take(pa.array(inside)).chunks:
                found.append(self._numbers(chunk))
        return np.concatenate(found)

    def _numbers(self, column: pa.Array) -> np.ndarray:
        if column.null_count:
            raise Unusable("a row has no vector (null)")
        numbers = column.flatten()
        if numbers.null_count:
            raise Unusable("a vector holds a null")
        lengths = column.value_lengths() if not pa.types.is_fixed_size_list(column.type) else None
        if lengths is not None and len(lengths) and set(lengths.unique().to_pylist()) != {self.dim}:
            raise Unusable(f"not all vectors have {self.dim} dimensions, as the first one")
        return numbers.to_numpy(zero_copy_only=False).reshape(len(column), self.dim)


class NpyRows:
    """An .npy file, or one in an .npz that is stored as it is: rows are read from their place."""

    def __init__(self, file: Path, stream: IO[bytes] | None = None, offset: int = 0) -> None:
        with contextlib.ExitStack() as stack:
            stream = stream or stack.enter_context(open(file, "rb"))
            shape, self.fortran, self.dtype = _header(stream)
            self.start = offset + stream.tell()
        if len(shape) != 2 or self.dtype.kind != "f":
            raise Unusable(f"its array is {self.dtype} {list(shape)}, not float [n, d]")
        self.file, self.shape, self.dim = file, shape, shape[1]
        self.end = self.start + shape[0] * shape[1] * self.dtype.itemsize
        if file.stat().st_size < self.end and offset == 0:
            raise Unusable("it ends early: the file is incomplete")

    def __len__(self) -> int:
        return self.shape[0]

    def has(self, *names: str) -> bool:
        return False

    def column(self, *names: str) -> pa.Array | None:
        return None

    def origin(self) -> bytes:
        return b"{}"

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        if self.fortran:
            for start in range(0, len(self), rows):
                yield np.array(self._mapped()[start : start + rows])
            return
        with open(self.file, "rb") as stream:  # a map's pages would count as memory of this process
            stream.seek(self.start)
            for start in range(0, len(self), rows):
                wanted = (min(rows, len(self) - start), self.dim)
                yield np.fromfile(stream, self.dtype, wanted[0] * wanted[1]).reshape(wanted)

    def take(self, wanted: np.ndarray) -> np.ndarray:
        return np.array(self._mapped()[wanted])

    def _mapped(self) -> np.memmap:
        order = "F" if self.fortran else "C"
        return np.memmap(self.file, self.dtype, "r", self.start, self.shape, order)


class NpzRows:
    """Arrays `vectors`, `paths`, `labels` and `omma`; blocks pass through the archive, which checks them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with zipfile.ZipFile(file) as archive:
            self.names = {name.removesuffix(".npy") for name in archive.namelist()}
            name = next((name for name in NAMES if name in self.names), None)
            if name is None:
                raise Unusable(f"no array `vectors` among {', '.join(sorted(self.names)[:8])}")
            self.member = f"{name}.npy"
            info = archive.getinfo(self.member)
            with archive.open(self.member) as stream:
                self.raw = NpyRows(file, stream, self._offset(info))
            size = self.raw.end - self._offset(info)
            if info.file_size < size:
                raise Unusable(f"its array `{name}` ends early: the file is incomplete")
        self.dim = self.raw.dim
        self.in_place = info.compress_type == zipfile.ZIP_STORED

    def _offset(self, info: zipfile.ZipInfo) -> int:
        with open(self.file, "rb") as stream:
            stream.seek(info.header_offset)
            header = stream.read(30)
        return info.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))

    def __len__(self) -> int:
        return len(self.raw)

    def has(self, *names: str) -> bool:
        return any(name in self.names for name in names)

    def column(self, *names: str) -> pa.Array | None:
        for name in names:
            if self.has(name):
                values = self._array(name)
                if values.shape != (len(self),):
                    raise Unusable(f"its array `{name}` is {list(values.shape)}, not [{len(self)}]")
                return pa.array(values.astype(str).tolist(), pa.large_string())
        return None

    def origin(self) -> bytes:
        return str(self._array("omma")).encode() if self.has("omma") else b"{}"

    def _array(self, name: str) -> np.ndarray:
        try:
            with np.load(self.file, allow_pickle=False) as arrays:
                return arrays[name]
        except ValueError as error:
            raise Unusable(f"its array `{name}` is no plain one ({line(error)})") from None

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        if self.raw.fortran:
            raise Unusable("its array is in Fortran's order: save it with np.ascontiguousarray")
        with zipfile.ZipFile(self.file) as archive, archive.open(self.member) as stream:
            _header(stream)
            width = self.dim * self.raw.dtype.itemsize
            for start in range(0, len(self), rows):
                data = stream.read(min(rows, len(self) - start) * width)
                if len(data) % width:
                    raise Unusable("it ends early: the file is incomplete")
                yield np.frombuffer(data, self.raw.dtype).reshape(-1, self.dim)

    def take(self, wanted: np.ndarray) -> np.ndarray:
        if self.in_place:
            return self.raw.take(wanted)
        found, start = [np.zeros((0, self.dim), np.float32)], 0
        for block in self.blocks(BLOCK):  # deflated: the way to a row leads through those before it
            first, last = np.searchsorted(wanted, (start, start + len(block)))
            found.append(block[wanted[first:last] - start])
            start += len(block)
        return np.concatenate(found)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of an .npy stream, which then stands at its numbers."""
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        return read(stream)
    except ValueError as error:
        raise Unusable(f"no .npy array ({line(error)})") from None
