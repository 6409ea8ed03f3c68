"""What is searched for, as one vector: images, regions, texts, rows of the index, and what to avoid."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from omma import weights
from omma.backbones.layers import text
from omma.backbones.layers.text import Paired
from omma.core.protocols import BadImage
from omma.data.sources import collection
from omma.data.sources.decode import decode
from omma.data.sources.names import is_sound
from omma.data.sources.readers import Files
from omma.ops.nearest import Neighbours, unit
from omma.retrieval import lance
from omma.retrieval.store import Index
from omma.weights import Model

Box = tuple[float, float, float, float]  # x, y, width, height: pixels, or shares where none is above 1
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".npy")


@dataclass(frozen=True)
class Asked:
    """One query. Texts are in the space that a model's text tower shares with projected images."""

    vector: Float[np.ndarray, "d"]
    kinds: tuple[str, ...]  # "image", "row" or "text", of each part
    row: int | None = None  # of the index, where the query is that row alone
    project: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n o"]] | None = None
    notes: tuple[str, ...] = ()  # about its texts


def kind_of(query: Any, index: Index) -> str:
    """Is it an image, the path of one in the index ("row"), or a text?

    What is no text at all (an array, a PIL image, bytes) is an image. Raises ValueError for the name of an
    image that is not there.
    """
    if not isinstance(query, str | os.PathLike):
        return "image"
    name = os.fspath(query)
    if os.path.isfile(name):
        return "image"
    if isinstance(name, str) and index.row_of(name) is not None:
        return "row"
    if isinstance(query, os.PathLike) or Path(str(name)).suffix.lower() in ENDINGS:
        raise ValueError(f"{name}: neither a file nor the path of an image in {index.path}")
    return "text"


def ask(
    index: Index,
    wanted: Sequence[Any],
    avoided: Sequence[Any] = (),
    crop: Box | None = None,
    model: Callable[[], Model] | None = None,
    paired: Callable[[], Paired] | None = None,
    device: torch.device | None = None,
) -> Asked:
    """The mean of the unit vectors of what is wanted, less that of what is avoided.

    crop: a region of the one image that is wanted. model: loads it, where images must be embedded; paired:
    its text tower. Raises ValueError where a region is asked of anything else, or lies outside the image.
    """
    if not wanted:
        raise ValueError("nothing to search for: give an image, a path of the index or a text")
    kinds = [kind_of(each, index) for each in (*wanted, *avoided)]
    if crop is not None and (len(wanted) != 1 or kinds[0] == "text"):
        raise ValueError("--crop takes a region of one image: give one image to search for")
    parts: list[Any] = [*wanted, *avoided]
    if crop is not None:
        parts[0], kinds[0] = region(parts[0], kinds[0], index, crop), "image"
    project, tower, notes = None, None, ()
    if "text" in kinds:
        assert paired is not None, "the caller can load the text tower"
        tower = paired()
        project = tower.images
    vectors = [_vector(part, kind, index, model, device) for part, kind in zip(parts, kinds)]
    if project is not None and tower is not None:
        words = [p for p, k in zip(parts, kinds) if k == "text"]
        notes = tuple(tower.tokenizer.unrepaired(words)) if tower.tokenizer else ()
        texts = iter(tower.texts(words))
        vectors = [next(texts) if v is None else project(v[None])[0] for v in vectors]
    rows = unit(np.stack([v for v in vectors if v is not None]))  # texts have their vectors now
    vector = rows[: len(wanted)].mean(0)
    if avoided:
        vector = vector - rows[len(wanted) :].mean(0)
    if not np.linalg.norm(vector) > 1e-6:
        raise ValueError("what is wanted and what is avoided are the same: nothing is left to search for")
    row = index.row_of(str(wanted[0])) if kinds == ["row"] else None
    return Asked(unit(vector[None])[0], tuple(kinds), row, project, notes)


def _vector(
    part: Any, kind: str, index: Index, model: Callable[[], Model] | None, device: torch.device | None
) -> Float[np.ndarray, "d"] | None:
    """The unit vector of an image or row; None for a text."""
    if kind == "text":
        return None
    if kind == "row":
        row = index.row_of(str(part))
        assert row is not None
        return index.vectors([row])[0]
    assert model is not None, "the caller can load the model"
    loaded = model()
    if device is not None:
        loaded = loaded.to(device)
    if isinstance(part, str | os.PathLike) and is_sound(os.fspath(part)):
        return unit(loaded.embed(collection.opened(part)))[0]
    return unit(loaded.embed([part] if not isinstance(part, np.ndarray) else part))[0]


def region(image: Any, kind: str, index: Index, box: Box) -> np.ndarray:
    """A part of an image [h, w, c]. Raises ValueError for one that is empty or lies outside."""
    name = str(image) if isinstance(image, str | os.PathLike) else "the image"
    if isinstance(image, np.ndarray):
        pixels = image
    elif isinstance(image, str | os.PathLike):
        file = os.fspath(image) if kind == "image" else _file_of(index, str(image))
        try:
            pixels = decode(Files("").content(file, None))
        except BadImage as error:
            raise ValueError(f"{file}: {error}; give an image to cut the region out of") from None
    else:
        pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    scale = (width, height) * 2 if max(box) <= 1 else (1, 1) * 2
    x, y, w, h = (round(value * unit_) for value, unit_ in zip(box, scale))
    if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
        raise ValueError(f"--crop {x},{y},{w},{h} (x,y,w,h) lies outside {name}, {width} x {height} pixels")
    return np.ascontiguousarray(pixels[y : y + h, x : x + w])


def _file_of(index: Index, path: str) -> str:
    """Where an image of the index lies."""
    file = os.path.join(index.manifest.source, path)
    if not os.path.isfile(file):
        raise ValueError(f"{path}: the index knows its vector, but no file {file} to cut a region out of")
    return file


def text_tower(model: Model, name: str | Path, merges: np.ndarray | None = None) -> Paired:
    """The model's reader of texts. Raises ValueError, in one line, for a model that reads none."""
    try:
        paired = text.restored(model.extras, str(name), merges)
    except ValueError as error:
        if text.TABLE in model.extras.tensors:
            raise
        raise ValueError(
            f"a text to search for, but {name} reads none: give an image, or index with a model that has a "
            "text tower (docs/clip.md)"
        ) from error
    if paired.tokenizer is None:
        raise ValueError(f"{name} does not hold its tokenizer's merges: give --merges (docs/clip.md)")
    return paired


def answer(
    index: Index, asked: Asked, k: int, where: str | None, device: torch.device, engine: str = "exact"
) -> tuple[Neighbours, tuple[str, ...]]:
    """The rows nearest to a query, and what to know of them; a row that is asked for leaves itself out.

    engine: "exact", "lancedb", or "auto". Raises ValueError where the index lacks the engine.
    """
    more, notes = k + (asked.row is not None), tuple[str, ...]()
    plain, there = where is None and asked.project is None, lance.holds(index)
    if engine == "lancedb" and not (plain and there):
        why = "answers no conditions and no texts" if there else "does not hold what the index holds now"
        raise ValueError(
            f"{index.path}: lancedb {why}: give --engine exact (omma index --engine lancedb builds it)"
        )
    if engine != "exact" and plain and there:
        found = lance.search(index, asked.vector[None], more)
        got = found.indices[0] >= 0
        found = Neighbours(found.similarities[:, got], found.indices[:, got])
        notes = (f"approximate: {lance.recall_of(index)}; --engine exact finds all",)
    else:
        found = index.search(asked.vector[None], more, where, device, asked.project)
        if engine == "auto" and plain and index.manifest.approximate is not None:
            notes = ("exact: the index has changed since its engine was built (omma index --engine lancedb)",)
    if asked.row is not None:
        others = found.indices[0] != asked.row
        found = Neighbours(found.similarities[:, others][:, :k], found.indices[:, others][:, :k])
    return found, (*notes, *asked.notes)


def model_of(index: Index, model: str | Path | Model | None = None) -> Model:
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
