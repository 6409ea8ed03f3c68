"""The nearest images of a collection by the pooled features' cosine: what the model takes for alike."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from omma.core.protocols import Images
from omma.data.batches.preprocess import load_batch
from omma.features.extract import FeatureSet, extract, with_channels
from omma.inspection.kinds import Explanation, Kind, Picture, Rows, Subject
from omma.inspection.shown import shown
from omma.inspection.target import pooled
from omma.ops.nearest import nearest, unit

SHOWN = 7  # neighbours of an image


class Near(NamedTuple):
    """The nearest images of each query, nearest first."""

    rows: Int[np.ndarray, "q k"]  # of the base
    similarities: Float[np.ndarray, "q k"]  # cosines


def near(
    queries: Float[np.ndarray, "q d"],
    base: Float[np.ndarray, "n d"],
    k: int = SHOWN,
    own: Int[np.ndarray, "q"] | None = None,
) -> Near:
    """At most k rows of the base for each query; own: the query's own row there, which is left out, or -1."""
    own = np.full(len(queries), -1) if own is None else own
    inside = bool((own >= 0).any())
    found = nearest(unit(queries), unit(base), k + inside)
    k = min(k, len(base) - inside)
    order = np.argsort(found.indices == own[:, None], axis=1, kind="stable")[:, :k]  # the own row goes last
    return Near(*(np.take_along_axis(x, order, 1) for x in (found.indices, found.similarities)))


def decimals(rows: Float[np.ndarray, "q k"], most: int = 5) -> int:
    """Places after the point, from 2 on, with which no row of numbers reads as one number all along."""

    def same(places: int) -> np.ndarray:
        return np.ptp(np.round(rows, places), axis=1) == 0

    return next((places for places in range(2, most) if (same(places) == same(most)).all()), most)


def lacks(subject: Subject) -> str | None:
    """Why there are no neighbours."""
    gallery = subject.gallery
    if gallery is None:
        return "neighbours are looked for among other images: give a collection (--gallery IMAGES)"
    if len(gallery) < 2:
        return "neighbours are looked for among two or more images: give a larger one (--gallery IMAGES)"
    return None


def explain(subject: Subject) -> Explanation:
    """Each image and its nearest ones in the gallery, marked by label where both have one.

    Options: "own", each image's row in the gallery, or -1; without it, images are known by their paths.
    "trained": whether the labels were used in training, which is said.
    """
    gallery = subject.gallery
    assert gallery is not None, "the caller has asked `lacks`"
    features = _features(subject, gallery)
    paths = {gallery.path(int(row)): at for at, row in enumerate(features.indices)}
    rows_own = subject.options.get("own")
    if rows_own is None:
        own = np.array([paths.get(path, -1) for path in subject.paths or [""] * len(subject.pixels)])
    else:
        at = {int(row): place for place, row in enumerate(features.indices)}
        own = np.array([at.get(int(row), -1) for row in rows_own])
    if len(features.indices) < 2:
        return Explanation("Nearest neighbours", "", (), {}, ("neighbours: a single image can be read",))
    queries = np.where(
        own[:, None] >= 0, features.vectors[own], pooled(subject.model, subject.pixels).cpu().numpy()
    )
    found = near(queries, features.vectors, own=own)
    chosen = features.indices[found.rows]
    names = None if gallery.labels is None else _names(gallery)
    labels = ["" if names is None or o < 0 else names[int(features.indices[o])] for o in own]
    pictures = _pictures(subject, gallery, chosen)
    digits = decimals(found.similarities)
    rows = []
    for i, path in enumerate(subject.paths or [""] * len(own)):
        cells: list[Picture] = [Picture(subject.shown[i], labels[i], path=path)]
        for j, row in enumerate(chosen[i].tolist()):
            label = "" if names is None else names[row]
            text = " ".join(filter(None, (f"{found.similarities[i, j]:.{digits}f}", label)))
            mark = label == labels[i] if label and labels[i] else None
            cells.append(Picture(pictures[i, j], text, mark, gallery.path(row)))
        rows.append(tuple(cells))
    caption = "For each image on the left, the images with the nearest features by cosine, nearest first."
    if any(labels):
        caption += " Green outline: the same label; dashed red: another."
        if (trained := subject.options.get("trained")) is not None:
            caption += f" Labels were {'' if trained else 'not '}used in training."
    heads = ("query", "nearest", *[""] * (chosen.shape[1] - 1))
    arrays = {"neighbours": chosen, "neighbours.similarities": found.similarities}
    return Explanation("Nearest neighbours", caption, (Rows(heads, tuple(rows)),), arrays)


def _features(subject: Subject, gallery: Images) -> FeatureSet:
    """Of the gallery: those that the option "features" gives, or computed now."""
    given = subject.options.get("features")
    if given is not None:
        return given
    first = next(subject.encoder.parameters())

    def progress(done: int, total: int) -> None:
        subject.progress("features of the collection", done, total)

    return extract(
        subject.encoder, gallery, subject.model.preprocess, first.device, first.dtype, progress=progress
    )


def _names(gallery: Images) -> list[str]:
    """Each image's label, "" without one."""
    assert gallery.labels is not None
    return [gallery.classes[k] if k >= 0 else "" for k in gallery.labels.tolist()]


def _pictures(
    subject: Subject, gallery: Images, rows: Int[np.ndarray, "q k"]
) -> Float[np.ndarray, "q k h w c"]:
    """The images as the model receives them, in [0, 1]."""
    preprocess = subject.model.preprocess
    pixels = load_batch(with_channels(gallery, preprocess.channels), rows.ravel(), preprocess)[0]
    images = shown(pixels, preprocess)
    return images.reshape(*rows.shape, *images.shape[1:])


KIND = Kind(name="neighbours", explain=explain, lacks=lacks)
