"""Outliers: images whose nearest neighbours are far, as a model's features see them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from omma.curation.robust import FEW, deviations, spread
from omma.ops.nearest import nearest, unit

NEIGHBOURS = 10
CUT = 3.5  # robust deviations of the logarithm [Iglewicz & Hoaglin 1993]


class Outliers(NamedTuple):
    """Distances, how far they lie from the median, and which images are too far."""

    distance: Float[np.ndarray, "n"]  # mean cosine distance to the nearest, 0 to 2
    deviations: Float[np.ndarray, "n"]  # robust, of its logarithm
    flagged: Bool[np.ndarray, "n"]
    limit: float  # the distance above which an image is flagged


def find(
    vectors: Float[np.ndarray, "n d"], groups: Int[np.ndarray, "n"] | None = None, k: int = NEIGHBOURS
) -> Outliers:
    """Mean cosine distance to the k nearest images, and those beyond CUT robust deviations of its logarithm.

    groups: images of one number are copies of each other; the first stands for all of them and has no
    neighbour among them, or two copies of an odd image would hide each other. Raises ValueError for fewer
    than FEW groups.
    """
    groups = np.arange(len(vectors)) if groups is None else np.asarray(groups)
    _, first, again = np.unique(groups, return_index=True, return_inverse=True)
    if len(first) < FEW:
        raise ValueError(
            f"{len(first)} different images are too few to say what is odd among them: give {FEW}"
        )
    near = nearest(None, unit(vectors[first]), k).similarities
    distance = (1 - near).mean(1).clip(0)
    logs = np.log(np.maximum(distance, 1e-6))
    away = deviations(logs, 0.02)
    middle, deviation = spread(logs)
    limit = float(np.exp(middle + CUT * max(deviation, 0.02)))
    return Outliers(distance[again], away[again], (away > CUT)[again], limit)
