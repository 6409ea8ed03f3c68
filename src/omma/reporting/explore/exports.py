"""The map for other explorers: a table for embedding-atlas, a folder for TensorBoard's projector."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from omma.core.device import cores
from omma.core.progress import Progress
from omma.core.protocols import Images
from omma.features import records
from omma.features.table import as_text
from omma.reporting.explore.analysis import Analysis
from omma.reporting.explore.facets import Facet
from omma.reporting.thumbnails import MISSING, jpeg, thumbnail

ROWS = 1024  # of a table that are written at a time
ATLAS_SIDE = 128  # pixels of a picture's longer side, where none are asked for
SPRITE = 8192  # pixels of the largest sprite's side that TensorBoard shows


def atlas(
    out: Path,
    images: Images,
    analysis: Analysis,
    facets: Sequence[Facet],
    *,
    side: int | None = None,
    progress: Progress | None = None,
) -> int:
    """A .parquet for embedding-atlas: path, x, y, neighbors, image, and a column for each facet; its bytes.

    neighbors: rows and cosine distances, nearest first; image: the bytes of a JPEG.
    """
    near = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float64()))])
    fields = [("path", pa.string()), ("x", pa.float32()), ("y", pa.float32())]
    fields += [("neighbors", near)] * (analysis.neighbours is not None)
    taken = {name for name, _ in fields} | {"image", "neighbors"}
    columns = {facet.name: facet.column() for facet in facets if facet.name not in taken}
    fields += [("image", pa.struct([("bytes", pa.binary())]))]
    fields += [(name, column.type) for name, column in columns.items()]
    with records.writer(out, pa.schema(fields)) as write, ThreadPoolExecutor(min(cores(), 16)) as pool:
        for rows in _parts(len(images)):
            pictures = pool.map(lambda i: jpeg(thumbnail(images, i, side or ATLAS_SIDE)), rows)
            table = {
                "path": [as_text(images.path(i)) for i in rows],
                "x": analysis.layout.xy[rows.start : rows.stop, 0],
                "y": analysis.layout.xy[rows.start : rows.stop, 1],
                "image": [{"bytes": picture} for picture in pictures],
            } | {name: column.slice(rows.start, len(rows)) for name, column in columns.items()}
            if (neighbours := analysis.neighbours) is not None:
                distances = 1 - neighbours.similarities[rows.start : rows.stop].astype(np.float64)
                table["neighbors"] = [
                    {"ids": ids, "distances": away}
                    for ids, away in zip(
                        neighbours.indices[rows.start : rows.stop].tolist(), distances.clip(0, 2).tolist()
                    )
                ]
            write(pa.table([pa.array(table[name], kind) for name, kind in fields], schema=pa.schema(fields)))
            if progress:
                progress(rows.stop, len(images))
    return out.stat().st_size


def tensorboard(
    out: Path,
    images: Images,
    vectors: Float[np.ndarray, "n d"],
    facets: Sequence[Facet],
    *,
    side: int | None = None,
    progress: Progress | None = None,
) -> int:
    """The vectors, a sprite and the facets as TensorBoard's projector reads them from `out`; their bytes.

    The projector makes the map itself. side: at most what the sprite has room for.
    """
    from torch.utils.tensorboard import SummaryWriter  # takes a second

    most = SPRITE // math.ceil(math.sqrt(len(images)))
    side = max(1, min(side or 64, most))
    pictures = torch.zeros(len(images), 3, side, side)
    with ThreadPoolExecutor(min(cores(), 16)) as pool:
        for rows in _parts(len(images)):
            for i, picture in zip(rows, pool.map(lambda i: _squared(images, i, side), rows)):
                pictures[i] = torch.from_numpy(picture).permute(2, 0, 1) / 255
            if progress:
                progress(rows.stop, len(images))
    columns = [[_plain(as_text(images.path(i))) for i in range(len(images))]]
    columns += [[_plain(_shown(value)) for value in facet.column().to_pylist()] for facet in facets]
    header = ["path", *(_plain(facet.name) for facet in facets)]
    with SummaryWriter(str(out)) as writer:
        writer.add_embedding(
            torch.from_numpy(vectors), [list(row) for row in zip(*columns)], pictures, metadata_header=header
        )
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _parts(n: int) -> Iterator[range]:
    for start in range(0, n, ROWS):
        yield range(start, min(start + ROWS, n))


def _squared(images: Images, i: int, side: int) -> np.ndarray:
    picture = thumbnail(images, i, side)
    square = np.full((side, side, 3), MISSING, np.uint8)
    left, top = (side - picture.width) // 2, (side - picture.height) // 2
    square[top : top + picture.height, left : left + picture.width] = np.asarray(picture)
    return square


def _shown(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """In one cell of a table: tabs and line ends are spaces."""
    return " ".join(text.split())
