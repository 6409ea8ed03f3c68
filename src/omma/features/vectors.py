"""Tables of vectors, of `omma embed` or others, read as a stream: memory does not grow with their rows."""

import contextlib
import json
import struct
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from omma.core import files
from omma.core.errors import line
from omma.core.words import count
from omma.features.vector_files import BLOCK, NpyRows, NpzRows, ParquetRows, Unusable

ENDINGS = (".parquet", ".npy", ".npz")


class Vectors(Protocol):
    """Rows of float32, wherever they lie."""

    @property
    def dim(self) -> int: ...

    def __len__(self) -> int: ...

    def blocks(self, rows: int = BLOCK) -> Iterator[Float[np.ndarray, "b d"]]:
        """All rows in order, at most `rows` at a time."""
        ...

    def take(self, indices: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m d"]:
        """These rows, in this order."""
        ...


class ArrayVectors:
    """Rows that are in memory."""

    def __init__(self, array: Float[np.ndarray, "n d"]) -> None:
        self.array = np.ascontiguousarray(array, np.float32)

    @property
    def dim(self) -> int:
        return self.array.shape[1]

    def __len__(self) -> int:
        return len(self.array)

    def blocks(self, rows: int = BLOCK) -> Iterator[Float[np.ndarray, "b d"]]:
        for start in range(0, len(self.array), rows):
            yield self.array[start : start + rows]

    def take(self, indices: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m d"]:
        return self.array[indices]


class ChosenVectors:
    """Some rows of others, by ascending number."""

    def __init__(self, vectors: Vectors, rows: Int[np.ndarray, "m"]) -> None:
        self.vectors, self.rows = vectors, np.asarray(rows, np.int64)
        assert (np.diff(self.rows) > 0).all(), "rows must ascend"

    @property
    def dim(self) -> int:
        return self.vectors.dim

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self, rows: int = BLOCK) -> Iterator[Float[np.ndarray, "b d"]]:
        start = 0
        for block in self.vectors.blocks(rows):
            first, last = np.searchsorted(self.rows, (start, start + len(block)))
            if last > first:
                yield block[self.rows[first:last] - start]
            start += len(block)

    def take(self, indices: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m d"]:
        return self.vectors.take(self.rows[indices])


class VectorTable:
    """The vectors of a .parquet (column `vector`), .npz (array `vectors`) or .npy file, and their images.

    Opening it reads no vector. `blocks` and `take` raise ValueError, in one line, for numbers that are not
    finite and for damage that only reading finds.
    """

    def __init__(self, file: str | Path) -> None:
        """Raises ValueError, in one line, unless the file holds vectors: numbers of type float, [n, d]."""
        self.file = Path(file)
        kind = self.file.suffix.lower()
        if kind not in ENDINGS:
            *most, last = (f"*{known}" for known in ENDINGS)
            raise ValueError(f"{file}: vectors are read from {', '.join(most)} and {last}")
        with self._readable():
            self._rows = {".parquet": ParquetRows, ".npz": NpzRows, ".npy": NpyRows}[kind](self.file)
            if not len(self._rows) or not self._rows.dim:
                raise Unusable("it holds no vectors")

    @property
    def dim(self) -> int:
        return self._rows.dim

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<{self.file.name}: {count(len(self), 'vector')} of {self.dim} dimensions>"

    @cached_property
    def paths(self) -> pa.LargeStringArray:
        """The images' paths; "NAME[ROW]" where the file has none."""
        with self._readable():
            found = self._rows.column("path", "paths")
        if found is None:
            found = pa.array((f"{self.file.name}[{row}]" for row in range(len(self))), pa.large_string())
        return found.cast(pa.large_string())

    @cached_property
    def labels(self) -> pa.Array | None:
        """The images' labels: texts, or lists of them; null or "" where unknown. None: there are none."""
        with self._readable():
            return self._rows.column("label", "labels")

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What `omma embed` noted: model, data, precision; {} in files of others."""
        try:
            origin = json.loads(self._rows.origin())
        except (ValueError, pa.ArrowException, OSError, zipfile.BadZipFile):
            return {}
        return origin if isinstance(origin, dict) else {}

    def blocks(self, rows: int = BLOCK) -> Iterator[Float[np.ndarray, "b d"]]:
        start = 0
        with self._readable():
            for block in self._rows.blocks(rows):
                yield self._checked(block, np.arange(start, start + len(block)))
                start += len(block)
            if start != len(self):
                raise Unusable(f"it ends after {count(start, 'row')} of {len(self):,}")

    def take(self, indices: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m d"]:
        wanted, again = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(self):
            raise IndexError(f"rows {wanted[0]} to {wanted[-1]} of {len(self)}")
        with self._readable():
            return self._checked(self._rows.take(wanted), wanted)[again]

    def _checked(self, block: np.ndarray, rows: np.ndarray) -> Float[np.ndarray, "b d"]:
        """The block as float32; sums find what is not finite without a mask of all numbers."""
        block = np.require(block, np.float32, ("C", "W"))  # PyTorch takes no array that is read-only
        with np.errstate(invalid="ignore", over="ignore"):
            suspect = not np.isfinite(block.sum(dtype=np.float64))
        if suspect and not (finite := np.isfinite(block).all(axis=1)).all():
            row = int(rows[np.argmin(finite)])
            raise ValueError(
                f"{self.file}: row {row} ({self.paths[row]}) holds numbers that are not finite: "
                "leave it out, or embed it again"
            )
        return block

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Errors of readers become one line that names the file."""
        try:
            yield
        except (pa.ArrowException, zipfile.BadZipFile, EOFError, Unusable, struct.error) as error:
            raise ValueError(f"{self.file} cannot be read as vectors: {line(error)}") from None
        except OSError as error:
            why = error.strerror or line(error)
            raise ValueError(f"{self.file} cannot be read as vectors: {why}") from None


def is_table(source: object) -> bool:
    """Does a name or path lead to a table of vectors, rather than to images or a list of them?"""
    if not isinstance(source, str | Path) or Path(source).suffix.lower() not in ENDINGS:
        return False
    try:
        VectorTable(Path(source).expanduser())
    except ValueError:
        return False
    return True


def stored(vectors: Vectors, file: Path, blocks: Iterator[np.ndarray] | None = None) -> VectorTable:
    """Write rows to an .npy file, atomically and a block at a time, from which any of them are read fast.

    blocks: the rows, if they are not to be those of `vectors` (normalised, say).
    """
    with files.atomic_write(file) as partial, open(partial, "wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(vectors), vectors.dim)}
        np.lib.format.write_array_header_1_0(stream, header)
        for block in vectors.blocks() if blocks is None else blocks:
            stream.write(np.ascontiguousarray(block, "<f4").data)
    return VectorTable(file)


def texts(column: pa.Array | None) -> Sequence[Any] | None:
    """A column of labels as Python objects, with None for ""; lists stay lists."""
    return None if column is None else [value or None for value in column.to_pylist()]
