"""`omma search`: the images of an index that are nearest to images, regions, texts or rows of it."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from omma.core import device as devices
from omma.core import outputs
from omma.core.checks import one_of
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.data import text_tokenizer
from omma.reporting import html, thumbnails
from omma.reporting.found_page import found_page
from omma.retrieval import query as queries
from omma.retrieval.pictures import images_of, shown_query
from omma.retrieval.query import Box
from omma.retrieval.store import Index
from omma.weights import Model

ENGINES = ("auto", "exact", "lancedb")
SIDE = 192  # of a thumbnail, in pixels


@dataclass(frozen=True)
class Searched(Displayed):
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
    minus: Any = (),
    crop: Box | None = None,
    top: int = 20,
    where: str | None = None,
    engine: str = "auto",
    page: str | Path | None = None,
    model: str | Path | Model | None = None,
    merges: str | Path | None = None,
    device: str = "auto",
) -> Searched:
    """The `top` images of an index with the highest cosine to the query.

    query: an image (a path, or anything else that `Model.embed` takes), the path of an image in the index, a
    text for a model with a text tower, or a list of these, whose mean is taken. minus: what to avoid,
    likewise: its mean is subtracted. crop: (x, y, width, height) of the one image, in pixels or in shares.
    engine: "exact"; "lancedb", about the nearest; "auto": the latter where the index has it, and for
    conditions and texts the exact one. page: an .html to write, with the images that were found.
    where: a condition on the index's columns (docs/search.md). model: where the index's model has moved.
    merges: its tokenizer's, for published CLIP weights that lie without it. Raises ValueError for another
    model than the index's, and for a text where the model has no text tower.
    """
    opened = index if isinstance(index, Index) else Index.open(index)
    wanted = list(query) if isinstance(query, (list, tuple)) else [query]
    avoided = list(minus) if isinstance(minus, (list, tuple)) else [minus]
    on = devices.pick_device(device)

    @cache
    def loaded() -> Model:
        return queries.model_of(opened, model)

    def tower() -> Any:
        given = None if merges is None else text_tokenizer.read_merges(merges)
        return queries.text_tower(loaded(), str(opened.model.name if model is None else model), given)

    one_of("engine", engine, ENGINES)
    if page is not None:
        outputs.check_file(page, "--page")
    asked = queries.ask(opened, wanted, avoided, crop, loaded, tower, on)
    found, notes = queries.answer(opened, asked, top, where, on, engine)
    rows = found.indices[0]
    named = opened.table.take(pa.array(rows)).select(list(opened.columns))
    result = Searched(
        index=opened.path,
        paths=tuple(opened.paths(rows)),
        similarities=found.similarities[0],
        rows=rows,
        table=named.add_column(1, "similarity", pa.array(found.similarities[0])),
        exact=not any("approximate" in note for note in notes),
        notes=notes,
    )
    if page is not None:
        html.write(Path(page), _page(opened, result, wanted, avoided, crop, where))
    return result


def _page(
    index: Index, result: Searched, wanted: list[Any], avoided: list[Any], crop: Box | None, where: str | None
) -> str:
    """The page of what was found."""
    asked = [
        (None if shown is None else thumbnails.reduced(shown, SIDE), mark + words)
        for parts, mark, box in ((wanted, "", crop), (avoided, "not ", None))
        for part in parts
        for shown, words in [shown_query(index, part, box)]
    ]
    images = images_of(index, result.rows)
    conditions = [("where", where)] if where else []
    return found_page(
        title=f"Search in {index.path.name}",
        query=asked,
        found=[thumbnails.thumbnail(images, i, SIDE) for i in range(len(result.rows))],
        paths=result.paths,
        similarities=result.similarities,
        labels=[label or "" for label in result.table["label"].to_pylist()],
        facts=[("images in the index", f"{len(index):,}"), ("model", index.model.name), *conditions],
        notes=result.notes,
    )
