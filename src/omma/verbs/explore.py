"""`omma explore`: a collection as a map in the browser, or as files that other explorers read."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from omma import weights
from omma.core import device as devices
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.core.protocols import Images, ImageSource
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.data.sources.values import input_notes
from omma.ops.nearest import Neighbours
from omma.reporting.explore import analysis, facets, outcome
from omma.reporting.explore import layout as placing
from omma.reporting.explore.layout import Kind
from omma.reporting.explore.page import Content
from omma.reporting.explore.target import Format, checked
from omma.weights import Model
from omma.weights.cached_features import cached_features


@dataclass(frozen=True)
class Explored(Displayed):
    """The map and what it found; rows are the images of `indices`, which number them in the collection."""

    path: Path  # the page, folder or table that was written
    bytes: int
    indices: Int[np.ndarray, "n"] = field(repr=False)
    coordinates: Float[np.ndarray, "n 2"] = field(repr=False)  # from 0 to 1, y upwards
    clusters: Int[np.ndarray, "n"] = field(repr=False)
    cluster_names: tuple[str, ...]
    neighbours: Neighbours | None = field(repr=False)  # rows of the nearest by cosine; None for one image
    pairs: Int[np.ndarray, "p 2"] = field(repr=False)  # rows of near-equal images
    suspects: Int[np.ndarray, "s"] = field(repr=False)  # rows whose label most neighbours do not share
    outliers: Int[np.ndarray, "n"] = field(repr=False)  # all rows, the least like any other first
    bad: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (path, reason) of images left out
    notes: tuple[str, ...] = ()


@translated()
def explore(
    model: str | Path | Model,
    images: ImageSource,
    out: str | Path,
    *,
    format: Format = "page",
    labelled: bool = False,
    layout: Kind = "auto",
    clusters: int | None = None,
    neighbours: int = 10,
    alike: float = 0.95,
    thumbnails: int | None = None,
    title: str | None = None,
    seed: int = 0,
    label_depth: LabelDepth | None = None,
    device: str = "auto",
    precision: str = "auto",
    architecture: str | None = None,
    allow_partial: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Explored:
    """Write a map of the images by the model's features to `out`.

    format: page (`out` is a *.html, or a new folder for a page with its thumbnails beside it), atlas (a
    .parquet that embedding-atlas takes) or tensorboard (a folder for its projector). labelled: refuse images
    without labels. layout: umap, pca, or auto: UMAP where it is installed. clusters: of k-means. neighbours:
    of each image that are kept. alike: cosine of near-equal pairs. thumbnails: pixels of the longer side; by
    default as many as a page of 30 MB, or a folder of 250 MB, has room for. progress: stage, images done, in
    all. Others: as for evaluate. Raises ValueError for options out of range and where no image can be read.
    """
    target = checked(Path(out), format, thumbnails)
    placing.check(layout)
    where = devices.pick_device(device)
    loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
    opened = collection.opened(images, label_depth)
    if labelled:
        outcome.require_labels(opened, collection.named(images))
    tell = progress or (lambda stage, done, total: None)
    features = cached_features(
        loaded, opened, where, devices.pick_precision(precision, where), source=name,
        progress=lambda done, total: tell("embedding", done, total),
    )  # fmt: skip
    features, bad = analysis.finite(features, opened)
    shown = opened.subset(features.indices)
    tell("placing", 0, 0)
    found = analysis.analyse(
        features, shown, kind=layout, clusters=clusters, neighbours=neighbours, alike=alike, seed=seed
    )
    skipped = (*getattr(opened, "skipped", ()), *bad)
    notes = (*loaded.provenance.get("loaded", ()), *input_notes(opened, loaded.preprocess), found.layout.note)
    known = facets.joined(
        facets.of_collection(shown), facets.of_analysis(found), facets.of_model(loaded, features.vectors)
    )
    content = Content(title or _title(opened), known, notes, skipped)
    size = outcome.write(
        target, shown, features.vectors, found, content, lambda done, total: tell("drawing", done, total)
    )
    return Explored(
        path=target.out,
        bytes=size,
        indices=found.indices,
        coordinates=found.layout.xy,
        clusters=found.clusters.of,
        cluster_names=found.clusters.names,
        neighbours=found.neighbours,
        pairs=np.stack([found.pairs.i, found.pairs.j], axis=1),
        suspects=found.suspects.rows,
        outliers=found.neighbour_distance.argsort(kind="stable")[::-1],
        bad=skipped,
        notes=notes,
    )


def _title(images: Images) -> str:
    return Path(str(getattr(images, "source", "")) or "images").name
