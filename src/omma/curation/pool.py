"""The pool that images are chosen from: images with a model's vectors, or a table of vectors."""

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int

from omma.core.progress import StageProgress
from omma.core.protocols import Images, ImageSource
from omma.curation.hierarchical import silent
from omma.data.sources import collection, label_sets
from omma.data.sources.layout import LabelDepth
from omma.data.sources.remote import is_remote
from omma.data.sources.values import input_notes
from omma.features.extract import prepare, stream
from omma.features.table import as_text
from omma.features.vectors import ArrayVectors, Vectors, VectorTable, is_table, stored
from omma.ops.nearest import unit
from omma.weights.cached_features import cached_features
from omma.weights.model import Model


@dataclass(frozen=True)
class Extractor:
    """A model that makes vectors of images, as the pool's are; None: there are vectors alone."""

    model: Model | None
    name: str | None  # what names it, whose cache is used
    device: torch.device
    precision: torch.dtype
    progress: StageProgress = silent


@dataclass(frozen=True)
class Pool:
    """Images with their vectors; rows of all columns correspond."""

    source: str
    vectors: Vectors
    paths: pa.LargeStringArray  # as the source has them
    labels: pa.Array | None  # texts or lists of texts; null where unknown
    folder: str | None  # that paths are relative to; None where they are no files
    key: dict[str, Any]  # what identifies the vectors
    images: Images | None = None  # None: of a table
    bad: tuple[tuple[str, str], ...] = ()  # (path, reason) of images that cannot be read
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def labelled(self) -> Bool[np.ndarray, "n"]:
        """Which images have a label."""
        if self.labels is None:
            return np.zeros(len(self), bool)
        return self.labels.is_valid().to_numpy(zero_copy_only=False)

    def readable(self, who: str) -> Images:
        """The images themselves. Raises ValueError for a table of vectors."""
        if self.images is None:
            raise ValueError(f"{who}: {self.source} holds vectors alone: give the images themselves")
        return self.images

    def files(self, rows: Int[np.ndarray, "m"]) -> list[str]:
        """Paths that a list of images can hold wherever it lies: absolute, where they are files."""
        paths = [as_text(path) for path in self.paths.take(pa.array(rows)).to_pylist()]
        if self.folder is None:
            return paths
        return [path if is_remote(path) else os.path.join(self.folder, path) for path in paths]


def opened(source: ImageSource, extractor: Extractor, label_depth: LabelDepth | None = None) -> Pool:
    """The pool of a source; raises ValueError, in one line, as `open_images` and `VectorTable` do.

    Also for vectors of another model than the extractor's, and for images without a model.
    """
    if is_table(source):
        return _of_table(VectorTable(Path(str(source)).expanduser()), extractor)
    images = collection.opened(source, label_depth)
    name = str(getattr(images, "source", collection.named(source)))
    if extractor.model is None:
        raise ValueError(
            f"{name}: these are images, not vectors: give the MODEL that embeds them, instead of -"
        )
    features = cached_features(
        extractor.model, images, extractor.device, extractor.precision, source=extractor.name,
        progress=partial(extractor.progress, "embedding"),
    )  # fmt: skip
    readable = images.subset(features.indices) if len(features.indices) < len(images) else images
    data = getattr(images, "fingerprint", None) or uuid.uuid4().hex
    return Pool(
        source=name,
        vectors=ArrayVectors(features.vectors),
        paths=pa.array((readable.path(i) for i in range(len(readable))), pa.large_string()),
        labels=_labels(readable),
        folder=getattr(images, "folder", None),
        key={"model": extractor.model.digest, "data": data, "precision": str(extractor.precision)},
        images=readable,
        bad=(*getattr(images, "skipped", ()), *features.bad),
        notes=tuple(input_notes(images, extractor.model.preprocess)),
    )


def others(source: ImageSource, like: Vectors, extractor: Extractor) -> tuple[np.ndarray, list[str]]:
    """Unit vectors [m, d] of a small set beside the pool, and their paths; raises as `opened` does."""
    pool = opened(source, extractor)
    if pool.vectors.dim != like.dim:
        raise ValueError(
            f"{pool.source}: vectors of {pool.vectors.dim} dimensions, and the pool's have {like.dim}: "
            "embed both by one model"
        )
    rows = np.concatenate([unit(block) for block in pool.vectors.blocks()])
    return rows, pool.paths.to_pylist()


def normalised(pool: Pool, file: Path) -> Vectors:
    """The pool's vectors with length 1: in memory where they are so already, else in a file, made once."""
    if isinstance(pool.vectors, ArrayVectors):
        return ArrayVectors(unit(pool.vectors.array))
    if file.exists():
        return VectorTable(file)
    return stored(pool.vectors, file, (unit(block) for block in pool.vectors.blocks()))


def effective_classes(pool: Pool, rows: Int[np.ndarray, "m"] | None = None) -> tuple[float, int] | None:
    """exp of the entropy of labels, and how many there are; of some rows, or all. None without labels.

    1 for a single class, k for k of equal size. Of images with several labels, each label counts.
    """
    labels = pool.labels if rows is None or pool.labels is None else pool.labels.take(pa.array(rows))
    if labels is None:
        return None
    if pa.types.is_nested(labels.type):
        labels = labels.flatten()  # rows without labels have none to count
    counts = labels.drop_null().value_counts().field("counts").to_numpy().astype(np.float64)
    if not len(counts):
        return None
    share = counts / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum())), len(counts)


def probabilities_of(
    pool: Pool, extractor: Extractor, strategy: str
) -> Callable[[Int[np.ndarray, "m"]], Float[np.ndarray, "m k"]]:
    """What answers for rows of the pool with the probabilities of the model's classifier.

    Raises ValueError where there is no such classifier, and, when called, for an unreadable image.
    """
    images, model = pool.readable(f"strategy {strategy}"), extractor.model
    classifier = None if model is None else model.classifier
    if model is None or classifier is None or classifier.multi_label:
        has = "a classifier of several labels" if classifier is not None else "no classifier"
        raise ValueError(f"strategy {strategy}: the model has {has}: take typical or coreset")

    def answer(rows: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m k"]:
        network, found = prepare(model.encoder, extractor.device, extractor.precision), []
        for batch in stream(network, images.subset(rows), model.preprocess, of=classifier):
            if batch.bad:
                raise ValueError("{}: {}; it could be read before".format(*batch.bad[0]))
            found.append(batch.vectors)
        return np.concatenate(found)

    return answer


# ---------------------------------------------------------------- inside
def _of_table(table: VectorTable, extractor: Extractor) -> Pool:
    origin, notes = table.origin, list[str]()
    digest = origin.get("model", {}).get("digest")
    if extractor.model is not None and digest is None:
        notes.append(f"{table.file.name} does not say which model made its vectors: taken as this one's")
    elif extractor.model is not None and digest != extractor.model.digest:
        raise ValueError(
            f"{table.file}: its vectors were made by another model than {extractor.name or 'the one given'}: "
            "embed the images again, or give - for MODEL"
        )
    status = table.file.stat()
    labels = table.labels
    if labels is not None and not pa.types.is_nested(labels.type):
        labels = pa.array([text or None for text in labels.cast(pa.large_string()).to_pylist()])
    return Pool(
        source=str(table.file),
        vectors=table,
        paths=table.paths,
        labels=labels,
        folder=_folder(str(origin.get("data", {}).get("source", "")), table),
        key={"file": str(table.file.absolute()), "size": status.st_size, "time": status.st_mtime_ns},
        notes=tuple(notes),
    )


def _folder(source: str, table: VectorTable) -> str | None:
    """The folder of the images that a table was made of, where it is here."""
    source = os.path.abspath(os.path.expanduser(source)) if source and "://" not in source else ""
    for folder in (source, os.path.dirname(source), os.path.dirname(os.path.abspath(table.file))):
        if folder and os.path.isfile(os.path.join(folder, table.paths[0].as_py())):
            return folder
    return None


def _labels(images: Images) -> pa.Array | None:
    """Names of classes: a text an image, or a list of them."""
    if (sets := label_sets.of(images)) is not None:
        names = np.array(images.classes, object)
        rows: Iterator[Any] = (None if (row < 0).all() else names[row > 0].tolist() for row in sets)
        return pa.array(rows, pa.list_(pa.string()))
    if images.labels is None:
        return None
    codes = pa.array(images.labels, mask=images.labels < 0)
    return pa.DictionaryArray.from_arrays(codes, pa.array(images.classes, pa.large_string())).cast(
        pa.large_string()
    )
