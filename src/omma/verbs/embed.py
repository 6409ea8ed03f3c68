"""`omma embed`: one vector an image, as a Parquet table that says where it came from."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omma import device as devices
from omma import files, weights
from omma.data import index
from omma.data.preprocess import as_dict
from omma.features import Part, stream
from omma.protocols import Images
from omma.weights import Model

ROWS = 8192  # of a row group: what is held in memory


@dataclass(frozen=True)
class Embedded:
    """What was written."""

    path: Path
    rows: int
    dim: int
    bad: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (path, reason) of images left out
    notes: tuple[str, ...] = ()  # what became of a published file's tensors


def embed(
    model: str | Path | Model,
    images: str | Path | Images,
    out: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch: int | None = None,
    allow_partial: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Embedded:
    """Write the pooled features of all readable images, in order, to the Parquet file `out`.

    Columns: `path` (string), `label` (the class's name, null where unknown; only if anything is labelled),
    `vector` (float32, of fixed length). The schema's metadata holds model, data, preprocessing and precision
    as JSON under "omma". Written a row group at a time, to its name only when complete. model, allow_partial:
    as for evaluate. Raises ValueError where nothing can be read.
    """
    out = Path(out)
    where = devices.pick_device(device)
    dtype = devices.pick_precision(precision, where)
    loaded = model if isinstance(model, Model) else weights.load(model, allow_partial=allow_partial)
    opened = images if isinstance(images, Images) else index.open_images(images)
    provenance = {
        "schema": 1,
        "omma": files.omma_version(),
        "model": {
            "digest": loaded.digest,
            "spec": loaded.encoder.spec(),
            "preprocess": as_dict(loaded.preprocess),
            "provenance": loaded.provenance,
        },
        "data": {
            "source": str(getattr(opened, "source", "images")),
            "fingerprint": getattr(opened, "fingerprint", None),
            "images": len(opened),
        },
        "pooling": "pooled",
        "precision": str(dtype).removeprefix("torch."),
    }
    schema = _schema(loaded.encoder.dim, opened.labels is not None, provenance)
    bad: list[tuple[str, str]] = list(getattr(opened, "skipped", ()))
    rows = done = 0
    with files.whole(out) as partial:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            waiting: list[Part] = []
            for part in stream(
                loaded.encoder, opened, loaded.preprocess, device=where, precision=dtype, batch=batch
            ):
                waiting.append(part)
                bad.extend(part.bad)
                rows += len(part.indices)
                done += len(part.indices) + len(part.bad)
                if sum(len(p.indices) for p in waiting) >= ROWS:
                    writer.write_table(_table(waiting, opened, schema))
                    waiting = []
                if progress:
                    progress(done, len(opened))
            writer.write_table(_table(waiting, opened, schema))
        if rows == 0:
            first = f"; the first: {bad[0][0]}: {bad[0][1]}" if bad else ""
            raise ValueError(f"none of {len(opened)} images could be read{first}")
    left_out = tuple((str(p), str(r)) for p, r in bad)
    return Embedded(out, rows, loaded.encoder.dim, left_out, tuple(loaded.provenance.get("loaded", ())))


def _schema(dim: int, labelled: bool, provenance: dict[str, Any]) -> pa.Schema:
    fields = [pa.field("path", pa.string(), nullable=False)]
    if labelled:
        fields.append(pa.field("label", pa.string()))
    fields.append(pa.field("vector", pa.list_(pa.float32(), dim), nullable=False))
    return pa.schema(fields, metadata={"omma": json.dumps(provenance)})


def _table(parts: list[Part], images: Images, schema: pa.Schema) -> pa.Table:
    """The rows of some batches."""
    indices = np.concatenate([p.indices for p in parts]) if parts else np.zeros(0, np.int64)
    vectors = [p.vectors.reshape(-1) for p in parts]
    dim = schema.field("vector").type.list_size
    columns: dict[str, pa.Array] = {
        "path": pa.array([_text(images.path(int(i))) for i in indices], pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(
            pa.array(np.concatenate(vectors) if vectors else np.zeros(0, np.float32)), dim
        ),
    }
    if images.labels is not None:
        names = [images.classes[k] if k >= 0 else None for k in images.labels[indices]]
        columns["label"] = pa.array(names, pa.string())
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _text(path: str) -> str:
    """A path as valid UTF-8; bytes that are none become replacement characters."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
