"""What an index's folder holds, as its manifest says: whichever files that does not name are not there.

The manifest is replaced atomically after all files that it names are on the disk, so a reader sees the index
as it was before a change, or as it is after it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from omma.core import files
from omma.core.errors import line

MANIFEST = "index.json"
SCHEMA = 1
REMEDY = "build it again with omma index, in another folder"
# the columns of every segment; others are those of the collection
PATH, LABEL, VECTOR = "path", "label", "vector"
SIZE, TIME, HASH, NORM = "_size", "_time", "_hash", "_norm"
OWN = (PATH, LABEL, SIZE, TIME, HASH, NORM, VECTOR)


@dataclass(frozen=True)
class IndexModel:
    """The model whose vectors an index holds."""

    name: str  # run folder, weights file, timm:NAME or hf:NAME, as it was given
    digest: str  # of the weights
    architecture: str | None = None
    allow_partial: bool = False

    def require(self, digest: str, name: str, index: str | Path) -> None:
        """Raise ValueError unless these are the weights whose vectors the index holds."""
        if digest != self.digest:
            raise ValueError(
                f"{index} holds vectors of {self.name} ({self.digest[:12]}), and {name} has other weights "
                f"({digest[:12]}): give that model, or build an index of this one in another folder"
            )


@dataclass(frozen=True)
class Segment:
    """One file of rows, never changed once it is written; dead: a file of the rows that no longer count."""

    file: str
    rows: int
    bytes: int
    dead: str | None = None
    dead_rows: int = 0

    @property
    def live(self) -> int:
        return self.rows - self.dead_rows


@dataclass(frozen=True)
class Manifest:
    """An index at one time."""

    model: IndexModel
    dim: int
    preprocess: Mapping[str, Any]  # as data/batches/preprocess.as_dict has it; {} where unknown
    precision: str = "float32"  # that the vectors were computed in
    source: str = ""  # of the images
    segments: tuple[Segment, ...] = ()
    approximate: Mapping[str, Any] | None = None  # of an engine beside the exact search (retrieval/lance.py)
    omma: str = field(default_factory=files.omma_version)

    @property
    def rows(self) -> int:
        """Images that the index holds."""
        return sum(segment.live for segment in self.segments)

    def names(self) -> set[str]:
        """The files that it names."""
        named = {s.file for s in self.segments} | {s.dead for s in self.segments if s.dead}
        return named | ({str(self.approximate["folder"])} if self.approximate else set())

    def write(self, folder: Path) -> None:
        """Replace the manifest in the folder, on the disk when this returns."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False)
        with files.atomic_write(folder / MANIFEST, durable=True) as partial:
            partial.write_text(text + "\n", encoding="utf-8")

    def with_segments(self, segments: tuple[Segment, ...]) -> "Manifest":
        return replace(self, segments=segments, omma=files.omma_version())


def exists(folder: str | Path) -> bool:
    """Is there an index in this folder?"""
    return (Path(folder) / MANIFEST).is_file()


def read(folder: str | Path) -> Manifest:
    """The manifest of an index. Raises ValueError where there is none, or a damaged or newer one."""
    file = Path(folder) / MANIFEST
    if not file.exists():
        raise ValueError(f"{folder} is no index: make one with omma index MODEL IMAGES --out {folder}")
    content = files.read_json(file, REMEDY)
    if (schema := content.pop("schema", None)) != SCHEMA:
        raise ValueError(f"{file}: schema {schema}, this omma reads {SCHEMA}; use the omma that wrote it")
    try:
        content["model"] = IndexModel(**content["model"])
        content["segments"] = tuple(Segment(**each) for each in content["segments"])
        return Manifest(**content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({line(error)}): {REMEDY}") from None


def own_schema(dim: int) -> pa.Schema:
    """The columns of every segment.

    vector: of unit length; _norm: what it was divided by. _size in bytes and _time in ns of the file, -1 and
    0 where unknown; _hash: of its content (BLAKE2b, 16 bytes), null where unknown.
    """
    return pa.schema(
        [
            pa.field(PATH, pa.string(), nullable=False),
            pa.field(LABEL, pa.string()),
            pa.field(SIZE, pa.int64()),
            pa.field(TIME, pa.int64()),
            pa.field(HASH, pa.binary(16)),
            pa.field(NORM, pa.float32()),
            pa.field(VECTOR, pa.list_(pa.float32(), dim), nullable=False),
        ]
    )
