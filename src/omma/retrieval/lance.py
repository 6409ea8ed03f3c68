"""An approximate engine beside the exact search, for millions of vectors: LanceDB (docs/adr/0017).

It lies in the index's folder, and holds for the segments it was built of: once these change it is not used.
"""

import functools
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from omma.core import files
from omma.core.errors import need
from omma.ops.nearest import Neighbours, unit
from omma.retrieval.recall import Recall, measured, sampled
from omma.retrieval.store import Index
from omma.retrieval.writer import Writer, writing

WANTED = 0.95  # recall that the number of partitions looked at is chosen for
LEAST = 5_000  # rows below which there is nothing to gain
TABLE, ROW, VECTOR = "vectors", "row", "vector"
REFINE = 4  # times k rows, whose distances are computed from their full vectors


def divide(table: Any, parts: int) -> None:
    """Index a table: parts (IVF) of vectors that take a byte a number (SQ)."""
    from lancedb.index import IvfSq

    table.create_index(VECTOR, config=IvfSq(distance_type="dot", num_partitions=parts))


def partitions(rows: int) -> int:
    """Into how many parts vectors are divided."""
    return max(1, int(np.sqrt(rows)))


def _lancedb() -> Any:
    return need("lancedb", "search")


def ensure(folder: Path, seed: int = 0) -> Recall:
    """Build the engine of an index, unless it is there already; its recall."""
    index = Index.open(folder)
    if holds(index):
        return recall_of(index)
    with writing(folder, index.manifest) as writer:
        return build(writer, seed)


def build(writer: Writer, seed: int = 0) -> Recall:
    """Build the engine of what the index holds now, and measure it against the exact search.

    The number of partitions that a query looks at is the smallest power of 2 that reaches a recall of .95 on
    one sample of queries; the recall that is returned and kept is of another. Raises ValueError for an index
    that is too small, and without LanceDB.
    """
    lancedb = _lancedb()
    index = Index.open(writer.folder)
    if len(index) < LEAST:
        raise ValueError(
            f"{writer.folder} holds {len(index):,} images: below {LEAST:,} the exact search is faster, leave "
            "--engine out"
        )
    name = f"lance-{secrets.token_hex(8)}"
    try:
        table = lancedb.connect(str(writer.folder / name)).create_table(
            TABLE, data=_batches(index), schema=_schema(index.dim)
        )
        most = partitions(len(index))
        divide(table, most)
        probes, tuning = 1, sampled(index, seed)
        while True:
            asked = functools.partial(_ask, table, probes)
            if measured(index, asked, tuning).value >= WANTED or probes >= most:
                break
            probes *= 2
        recall = measured(index, asked, sampled(index, seed + 1))
    except BaseException:
        files.remove(writer.folder / name)
        raise
    segments = [[s.file, s.dead] for s in writer.manifest.segments]
    facts = {"engine": "lancedb", "folder": name, "probes": probes, "partitions": most}
    writer.replace(approximate=facts | {"recall": recall.facts(), "segments": segments})
    return recall


def holds(index: Index) -> bool:
    """Is there an engine, built of what the index holds now?"""
    facts = index.manifest.approximate
    return facts is not None and facts["segments"] == [[s.file, s.dead] for s in index.manifest.segments]


def recall_of(index: Index) -> Recall:
    """As it was measured when the engine was built."""
    assert index.manifest.approximate is not None
    return Recall(**index.manifest.approximate["recall"])


def search(index: Index, vectors: Float[np.ndarray, "m d"], k: int) -> Neighbours:
    """About the k nearest rows of each vector, with their exact cosines; of fewer found, -1."""
    facts = index.manifest.approximate
    assert facts is not None
    assert holds(index), "the caller has made sure"
    table = _opened(str(index.path / str(facts["folder"])))
    asked = unit(vectors)
    rows = _ask(table, int(facts["probes"]), asked, k)
    near = index.vectors(rows.clip(0).ravel()).reshape(*rows.shape, -1)
    similarities = np.where(rows < 0, -np.inf, np.einsum("md,mkd->mk", asked, near)).astype(np.float32)
    order = np.argsort(-similarities, axis=1, kind="stable")
    return Neighbours(np.take_along_axis(similarities, order, 1), np.take_along_axis(rows, order, 1))


@functools.lru_cache(4)
def _opened(folder: str) -> Any:
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is missing: run omma index with --engine lancedb again")
    return _lancedb().connect(folder).open_table(TABLE)


def _ask(table: Any, probes: int, vectors: Float[np.ndarray, "m d"], k: int) -> Int[np.ndarray, "m k"]:
    found = np.full((len(vectors), k), -1, np.int64)
    for number, vector in enumerate(vectors):
        query = table.search(vector, vector_column_name=VECTOR).distance_type("dot").limit(k)
        answer = query.nprobes(probes).refine_factor(REFINE).select([ROW, "_distance"]).to_arrow()
        found[number, : len(answer)] = answer[ROW].to_numpy()
    return found


def _schema(dim: int) -> pa.Schema:
    return pa.schema([pa.field(ROW, pa.int64()), pa.field(VECTOR, pa.list_(pa.float32(), dim))])


def _batches(index: Index, size: int = 16_384) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(index), size):
        rows = np.arange(start, min(start + size, len(index)))
        values = pa.FixedSizeListArray.from_arrays(pa.array(index.vectors(rows).ravel()), index.dim)
        yield pa.record_batch([pa.array(rows), values], schema=_schema(index.dim))
