"""The images themselves of rows of an index, from where they were when it was built."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from omma.core.protocols import Images
from omma.data.sources import collection
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.readers import Files
from omma.retrieval.query import Box, kind_of, region
from omma.retrieval.store import Index


def images_of(index: Index, rows: Int[np.ndarray, "n"]) -> Images:
    """The images of these rows, in order; those that are no longer there fail when they are read.

    Raises ValueError where the source of the images is gone, or was in memory.
    """
    source, paths = index.manifest.source, index.paths(rows)
    preprocess = index.preprocess
    channels = 3 if preprocess is None else preprocess.channels
    if not source:
        raise ValueError(f"{index.path} does not know where its images lie: they were in memory")
    if Path(source).is_dir():
        return IndexedImages(Files(source), pa.array(paths, pa.large_string()), channels=channels)  # pyright: ignore
    images = collection.open_images(source)
    place = {images.path(i): i for i in range(len(images))}
    if missing := [path for path in paths if path not in place]:
        raise ValueError(f"{source} no longer holds {missing[0]}: bring the index up to date with omma index")
    return images.subset(np.array([place[path] for path in paths], np.int64))


def shown_query(index: Index, query: Any, crop: Box | None = None) -> tuple[np.ndarray | None, str]:
    """The pixels [h, w, c] of what was asked for, and its name; None and the words for a text."""
    kind = kind_of(query, index)
    if kind == "text":
        return None, str(query)
    name = Path(query).name if isinstance(query, str | Path) else "an image"
    whole = (0.0, 0.0, 1.0, 1.0)
    try:
        return region(query, kind, index, crop or whole), name
    except ValueError:  # a row whose file is gone: its vector was enough
        return None, name
