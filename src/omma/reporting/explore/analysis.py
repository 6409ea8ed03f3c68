"""What the map shows of a collection's vectors: places, clusters, neighbours, and what looks wrong."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from omma.core.protocols import Images
from omma.core.words import count
from omma.features.extract import FeatureSet
from omma.ops.nearest import Neighbours, nearest, unit
from omma.reporting.explore import clusters as grouping
from omma.reporting.explore import findings
from omma.reporting.explore.clusters import Clusters
from omma.reporting.explore.findings import Pairs, Suspects
from omma.reporting.explore.layout import NEIGHBOURS, Kind, Layout, layout, reduced


@dataclass(frozen=True)
class Analysis:
    """Of n images, whose `indices` in the collection are given; rows of everything else are these images.

    neighbours: the k nearest by cosine, None for a single image; neighbour_distance: mean cosine distance
    to them.
    """

    indices: Int[np.ndarray, "n"]
    layout: Layout
    clusters: Clusters
    neighbours: Neighbours | None
    pairs: Pairs
    suspects: Suspects
    neighbour_distance: Float[np.ndarray, "n"]
    agreement: Float[np.ndarray, "n"] | None  # with the neighbours' labels; None without labels


def finite(features: FeatureSet, images: Images) -> tuple[FeatureSet, tuple[tuple[str, str], ...]]:
    """The features without those that are not finite; and (path, reason) of all images that are left out.

    Raises ValueError if none is left.
    """
    good = np.isfinite(features.vectors).all(axis=1, keepdims=False).reshape(-1)
    bad = tuple((images.path(int(i)), "its features are not finite") for i in features.indices[~good])
    if not good.any():
        raise ValueError(
            f"none of {count(len(good), 'image')} has finite features: the model is damaged, or needs fp32"
        )
    kept = FeatureSet(features.vectors[good], features.indices[good], features.bad, features.provenance)
    return kept, (*features.bad, *bad)


def analyse(
    features: FeatureSet,
    images: Images,
    *,
    kind: Kind = "auto",
    clusters: int | None = None,
    neighbours: int = 10,
    alike: float = findings.ALIKE,
    seed: int = 0,
) -> Analysis:
    """Places, clusters and findings of `finite` features; images: those of the features, in their order.

    The same input gives the same answer. kind: of the map; clusters: their number, by default
    `clusters.number`; neighbours: of each image, at least 1; alike: cosine of near-equal pairs. Raises
    ValueError for options out of range.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}: must be at least 1")
    if not 0 < alike <= 1:
        raise ValueError(f"alike={alike}: a cosine above 0, at most 1")
    rows = unit(features.vectors)
    near = nearest(None, rows, max(neighbours, NEIGHBOURS - 1)) if len(rows) > 1 else None
    components, share = reduced(rows, seed)
    placed = layout(components, share, near, kind, seed)
    names, written = labels(images), captions(images)
    grouped = grouping.clusters(components, clusters, seed, classes=names, captions=written)
    none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    pairs, odd = Pairs(*none), Suspects(*none)
    alone, agreed = np.zeros(len(rows), np.float32), None
    if near is not None:
        pairs = findings.near_pairs(near, alike)
        near = Neighbours(near.similarities[:, :neighbours], near.indices[:, :neighbours])
        alone = findings.neighbour_distance(near)
        if images.labels is not None:
            odd = findings.suspects(near, images.labels)
            agreed = findings.agreement(near, images.labels)
    return Analysis(features.indices, placed, grouped, near, pairs, odd, alone, agreed)


def labels(images: Images) -> list[str | None] | None:
    """The class's name of each image, of several joined by `; `; None if no image has a label."""
    sets = getattr(images, "label_sets", None)
    if sets is not None:
        return ["; ".join(images.classes[c] for c in np.flatnonzero(row == 1)) or None for row in sets]
    if images.labels is None:
        return None
    return [images.classes[c] if c >= 0 else None for c in images.labels.tolist()]


def captions(images: Images) -> list[str] | None:
    """Each image's captions, joined by ` / `; None if there are none."""
    lists = getattr(images, "text", None)
    if lists is None:
        return None
    return [" / ".join(text for text in row or () if text) for row in lists.to_pylist()]
