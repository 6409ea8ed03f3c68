"""An index opened for reading: rows, their vectors mapped from the disk, and the exact nearest of them."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int

from omma.core.protocols import Preprocess
from omma.data.batches.preprocess import from_dict
from omma.ops.exact import Base, Found
from omma.ops.nearest import Neighbours, unit
from omma.retrieval import manifest as manifests
from omma.retrieval import where as conditions
from omma.retrieval.manifest import PATH, REMEDY, VECTOR, IndexModel, Manifest, Segment

RETRIES = 3  # of opening an index that another process changes meanwhile
CPU = torch.device("cpu")
Project = Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n o"]]
LONGEST = 1 + 1e-5  # norm of a unit vector in fp32


class Index:
    """The images of an index as numbered rows, each with a unit vector; opened once, asked often.

    It stays as it was when it was opened, whatever a writer does meanwhile. Threads may share it.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        mapped = [_mapped(path / s.file, s) for s in manifest.segments]
        self._tables = [table for table, _ in mapped]
        self.blocks = [vectors for _, vectors in mapped]  # of each segment: dead rows, too
        self.dead = [_dead(path, s) for s in manifest.segments]  # masks, or None
        self._bases: dict[torch.device, Base] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Index":
        """The index in a folder. Raises ValueError where there is none, or a damaged one."""
        path = Path(path)
        for attempt in range(RETRIES):
            try:
                return cls(path, manifests.read(path))
            except FileNotFoundError as error:  # a writer has removed files that the manifest named before
                if attempt == RETRIES - 1:
                    raise ValueError(f"{error.filename} is missing: {REMEDY}") from None
        raise AssertionError

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        return f"<Index of {len(self):,} images, {self.dim} dimensions, {self.model.name}>"

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.manifest.dim

    @property
    def model(self) -> IndexModel:
        """The model whose vectors these are: its name and the digest of its weights."""
        return self.manifest.model

    @property
    def preprocess(self) -> Preprocess | None:
        """How the images were prepared; None where a table of vectors did not say."""
        return from_dict(self.manifest.preprocess) if self.manifest.preprocess else None

    @cached_property
    def table(self) -> pa.Table:
        """All columns but the vectors, a row for each image: path, label, and the collection's."""
        parts = []
        for table, dead in zip(self._tables, self.dead):
            part = table.drop_columns([VECTOR])
            parts.append(part if dead is None else part.filter(pa.array(~dead)))
        return (
            _joined(parts) if parts else manifests.own_schema(self.dim).empty_table().drop_columns([VECTOR])
        )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names that a condition may use."""
        return tuple(name for name in self.table.column_names if not name.startswith("_"))

    def paths(self, rows: Sequence[int] | Int[np.ndarray, "n"] | None = None) -> list[str]:
        """The paths of these rows, or of all."""
        column = self.table[PATH]
        return (column if rows is None else column.take(pa.array(np.asarray(rows, np.int64)))).to_pylist()

    @cached_property
    def live(self) -> Int[np.ndarray, "n"] | None:
        """Where each row stands in the concatenated blocks; None where all count."""
        if all(dead is None for dead in self.dead):
            return None
        alive = [
            np.ones(s.rows, bool) if d is None else ~d for s, d in zip(self.manifest.segments, self.dead)
        ]
        return np.flatnonzero(np.concatenate(alive))

    def vectors(self, rows: Sequence[int] | Int[np.ndarray, "n"] | None = None) -> Float[np.ndarray, "n d"]:
        """Unit vectors of these rows, or of all (in memory)."""
        places = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        if self.live is not None:
            places = self.live[places]
        found = np.zeros((len(places), self.dim), np.float32)
        start = 0
        for block in self.blocks:
            own = np.flatnonzero((places >= start) & (places < start + len(block)))
            found[own] = block[places[own] - start]
            start += len(block)
        return found

    def rows_where(self, where: str) -> Int[np.ndarray, "n"]:
        """The rows that meet a condition (where.py). Raises ValueError for one that cannot be read."""
        return np.flatnonzero(conditions.mask(self.table, where, self.columns))

    def row_of(self, path: str) -> int | None:
        """The row of the image with this path, or None."""
        found = np.flatnonzero(pc.equal(self.table[PATH], path).to_numpy())  # pyright: ignore
        return int(found[0]) if len(found) else None

    def search(
        self,
        vectors: Float[np.ndarray, "m d"],
        k: int,
        where: str | None = None,
        device: torch.device = CPU,
        project: Project | None = None,
    ) -> Neighbours:
        """The k rows of the highest cosine to each vector, of those that meet the condition: exact.

        project: what makes of the index's vectors those that are compared, of unit length. Vectors need not
        be of unit length. Fewer than k are found where fewer rows meet the condition. Raises ValueError for
        vectors of another size or that are not finite, and for k < 1.
        """
        asked = np.asarray(vectors, np.float32)
        if asked.ndim != 2 or (project is None and asked.shape[1] != self.dim):
            raise ValueError(f"vectors {list(asked.shape)}: {self.path} holds vectors of {self.dim} numbers")
        if not np.isfinite(asked).all():
            raise ValueError(
                "a vector to search for is not finite: look at its image and the model's precision"
            )
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        chosen = None if where is None else self.rows_where(where)
        places = chosen if self.live is None else self.live if chosen is None else self.live[chosen]
        if project is None:
            similarities, found = self._base(device).nearest(unit(asked), k, among=places)
        else:
            similarities, found = self._projected(unit(asked), k, places, device, project)
        if places is None:
            return Neighbours(similarities, found)
        rows = np.searchsorted(places, found)  # their place among those that count
        return Neighbours(similarities, rows if chosen is None else chosen[rows])

    def _projected(
        self, asked: np.ndarray, k: int, places: np.ndarray | None, device: torch.device, project: Project
    ) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
        """The nearest among projected vectors, of which a block's are in memory at a time."""
        parts, start = list[Found](), 0
        for block in self.blocks:
            end = start + len(block)
            among = None if places is None else places[(places >= start) & (places < end)] - start
            found = Base([project(block)], device=device).nearest(asked, k, among=among)
            parts.append(Found(found.similarities, found.indices + start))
            start = end
        similarities = np.concatenate([part.similarities for part in parts], axis=1)
        indices = np.concatenate([part.indices for part in parts], axis=1)
        order = np.lexsort((indices, -similarities))[:, :k]
        return np.take_along_axis(similarities, order, 1), np.take_along_axis(indices, order, 1)

    def _base(self, device: torch.device) -> Base:
        """The vectors as they are searched on a device, where they may be kept."""
        if device not in self._bases:
            self._bases[device] = Base(self.blocks, largest=LONGEST, device=device)
        return self._bases[device]


def _mapped(file: Path, segment: Segment) -> tuple[pa.Table, Float[np.ndarray, "n d"]]:
    """A segment's rows, and their vectors, mapped from the disk; a file that was cut is refused.

    Pages are private to this process, so that torch takes them without a copy; nothing writes to them.
    """
    if (size := file.stat().st_size) != segment.bytes:
        raise ValueError(f"{file} is damaged ({size:,} of {segment.bytes:,} bytes): {REMEDY}")
    pages = np.memmap(file, np.uint8, mode="c")
    try:
        table = pa.ipc.open_file(pa.py_buffer(pages)).read_all()
        values = table[VECTOR].chunk(0).values.buffers()[1]
    except (pa.ArrowException, IndexError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}): {REMEDY}") from None
    start = values.address - pages.ctypes.data
    return table, pages[start : start + values.size].view(np.float32).reshape(len(table), -1)


def _dead(folder: Path, segment: Segment) -> np.ndarray | None:
    """A mask of the segment's rows that no longer count, or None."""
    if segment.dead is None:
        return None
    mask = np.zeros(segment.rows, bool)
    mask[np.load(folder / segment.dead)] = True
    return mask


def _joined(parts: Sequence[pa.Table]) -> pa.Table:
    """The tables one after the other; columns that some lack are null there, of two types texts."""
    try:
        return pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    except pa.ArrowException:
        kinds: dict[str, set[pa.DataType]] = {}
        for part in parts:
            for field in part.schema:
                kinds.setdefault(field.name, set()).add(field.type)
        mixed = {name for name, types in kinds.items() if len(types) > 1}
        cast = [
            part.cast(
                pa.schema([pa.field(f.name, pa.string()) if f.name in mixed else f for f in part.schema])
            )
            for part in parts
        ]
        return pa.concat_tables(cast, promote_options="permissive").combine_chunks()
