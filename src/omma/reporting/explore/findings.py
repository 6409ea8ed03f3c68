"""What neighbours tell of a collection: near-equal pairs, labels that disagree, images unlike any other."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from omma.ops.nearest import Neighbours

ALIKE = 0.95  # cosine from which two images are listed as near-equal
LISTED = 500  # entries of a list


@dataclass(frozen=True)
class Pairs:
    """Near-equal images, the most similar first; i < j."""

    i: Int[np.ndarray, "p"]
    j: Int[np.ndarray, "p"]
    similarity: Float[np.ndarray, "p"]


@dataclass(frozen=True)
class Suspects:
    """Images whose label most neighbours do not share, the clearest first."""

    rows: Int[np.ndarray, "s"]
    instead: Int[np.ndarray, "s"]  # the label that most neighbours have
    share: Float[np.ndarray, "s"]  # of labelled neighbours that have it


def near_pairs(neighbours: Neighbours, threshold: float = ALIKE) -> Pairs:
    """Pairs of that cosine or a larger one among the neighbours; not of those beyond them."""
    i, place = np.nonzero(neighbours.similarities >= threshold)
    j, similarity = neighbours.indices[i, place], neighbours.similarities[i, place]
    ends = np.sort(np.stack([i, j], axis=1), axis=1)
    unique, first = np.unique(ends, axis=0, return_index=True)
    order = np.lexsort((unique[:, 1], unique[:, 0], -similarity[first]))
    return Pairs(unique[order, 0], unique[order, 1], np.minimum(similarity[first][order], 1.0))


def agreement(neighbours: Neighbours, labels: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The share of each image's labelled neighbours that have its label; NaN for none."""
    near = labels[neighbours.indices]
    known = (near >= 0).sum(1)
    same = ((near == labels[:, None]) & (near >= 0)).sum(1)
    share = np.full(len(labels), np.nan, np.float32)
    fits = (known > 0) & (labels >= 0)
    share[fits] = same[fits] / known[fits]
    return share


def suspects(neighbours: Neighbours, labels: Int[np.ndarray, "n"]) -> Suspects:
    """Images of a label that at least half of their labelled neighbours replace by one and the same other.

    The clearest first: by the other label's share, less that of the own one, then by order.
    """
    near = labels[neighbours.indices]
    rows, instead, share, margin = [], [], [], []
    for row in np.flatnonzero((labels >= 0) & ((near >= 0) & (near != labels[:, None])).any(1)):
        known = near[row][near[row] >= 0]
        names, counts = np.unique(known, return_counts=True)
        best = int(np.argmax(counts))
        if names[best] != labels[row] and 2 * counts[best] >= len(known) and len(known) > 1:
            rows.append(row)
            instead.append(names[best])
            share.append(counts[best] / len(known))
            margin.append((counts[best] - (known == labels[row]).sum()) / len(known))
    order = np.lexsort((rows, -np.array(margin, np.float64)))
    return Suspects(
        np.array(rows, np.int64)[order],
        np.array(instead, np.int64)[order],
        np.array(share, np.float32)[order],
    )


def neighbour_distance(neighbours: Neighbours) -> Float[np.ndarray, "n"]:
    """The mean cosine distance to the neighbours, from 0 to 2; large for an image unlike any other."""
    return np.clip(1 - neighbours.similarities, 0, 2).mean(1).astype(np.float32)
