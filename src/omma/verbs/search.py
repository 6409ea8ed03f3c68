"""`omma search`: the images of an index that are nearest to images, regions, texts or rows of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from omma import weights
from omma.core import device as devices
from omma.core.explain import translated
from omma.data import text_tokenizer
from omma.search import query as queries
from omma.search.query import Box
from omma.search.store import Index
from omma.weights import Model
from omma.weights.pictures import SINGLE


@dataclass(frozen=True)
class Searched:
    """The images found, nearest first."""

    index: Path
    paths: tuple[str, ...]
    similarities: Float[np.ndarray, "k"]  # cosines
    rows: Int[np.ndarray, "k"] = field(repr=False)  # of the index
    table: pa.Table = field(repr=False)  # path, similarity, label and the collection's columns
    exact: bool = True
    notes: tuple[str, ...] = ()


@translated()
def search(
    index: str | Path | Index,
    query: Any,
    *,
    minus: Sequence[Any] = (),
    crop: Box | None = None,
    top: int = 20,
    where: str | None = None,
    model: str | Path | Model | None = None,
    merges: str | Path | None = None,
    device: str = "auto",
) -> Searched:
    """The `top` images of an index with the highest cosine to the query: exact.

    query: an image (a path, or anything else that `Model.embed` takes), the path of an image in the index, a
    text for a model with a text tower, or a list of these, whose mean is taken. minus: what to avoid: its
    mean is subtracted. crop: (x, y, width, height) of the one image that is given, in pixels, or in shares.
    where: a condition on the index's columns (docs/search.md). model: where the index's model has moved.
    merges: its tokenizer's, for published CLIP weights that lie without it. Raises ValueError for another
    model than the index's, and for a text where the model has no text tower.
    """
    opened = index if isinstance(index, Index) else Index.open(index)
    wanted = list(query) if isinstance(query, (list, tuple)) else [query]
    avoided = [minus] if isinstance(minus, SINGLE) else list(minus)
    on = devices.pick_device(device)

    @cache
    def loaded() -> Model:
        return opened_model(opened, model)

    def tower() -> Any:
        given = None if merges is None else text_tokenizer.read_merges(merges)
        return queries.text_tower(loaded(), model or opened.model.name, given)

    asked = queries.ask(opened, wanted, avoided, crop, loaded, tower, on)
    found = queries.answer(opened, asked, top, where, on)
    rows = found.indices[0]
    named = opened.table.take(pa.array(rows)).select(list(opened.columns))
    similarity = pa.array(found.similarities[0])
    return Searched(
        index=opened.path,
        paths=tuple(opened.paths(rows)),
        similarities=found.similarities[0],
        rows=rows,
        table=named.add_column(1, "similarity", similarity),
    )


def opened_model(index: Index, model: str | Path | Model | None = None) -> Model:
    """The index's model, loaded, from where it was or from elsewhere. Raises ValueError for another one."""
    known = index.model
    if model is None and not known.name:
        raise ValueError(f"{index.path} does not know where its model is: give --model")
    try:
        found, name = weights.named(
            model or known.name, architecture=known.architecture, allow_partial=known.allow_partial
        )
    except ValueError as error:
        if model is not None or ":" in known.name or Path(known.name).exists():
            raise
        raise ValueError(f"{error}; where the index's model has moved, give --model") from None
    known.require(found.digest, name, index.path)
    return found
