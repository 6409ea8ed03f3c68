"""Domains against each other: what labels of one (photographs, one hospital) are worth on another."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from omma.core.protocols import Images
from omma.core.words import count
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.selection import values_of
from omma.evaluation import confidence, knn

MOST = 12  # values of a column that make a matrix


@dataclass(frozen=True)
class Matrix:
    """Accuracies of k-NN from the images of each domain (rows) to those of each (columns).

    On the diagonal, each image is classified by all others of its domain.
    """

    column: str
    names: tuple[str, ...]
    images: Int[np.ndarray, "k"]  # of each domain
    accuracy: Float[np.ndarray, "k k"]
    intervals95: Float[np.ndarray, "k k 2"]  # bootstrap over the images that are classified
    chance: float  # the share of the largest class
    k: int = knn.HEADLINE

    @property
    def within(self) -> float:
        """Mean accuracy within a domain."""
        return float(np.diag(self.accuracy).mean())

    @property
    def across(self) -> float:
        """Mean accuracy from one domain to another."""
        return float(self.accuracy[~np.eye(len(self.names), dtype=bool)].mean())


def column(images: Images, name: str) -> list[str]:
    """The domain of each image, "" where there is none. Raises ValueError for a column that has none."""
    if not isinstance(images, IndexedImages):
        raise ValueError(f"--domains {name}: only a collection that `open_images` opened has columns")
    values = values_of(images, name, f"--domains {name}")
    kinds = sorted(set(values) - {""})
    if not 2 <= len(kinds) <= MOST:
        raise ValueError(
            f"--domains {name}: has {count(len(kinds), 'value')}, and a matrix needs 2 to {MOST}; choose a "
            "column of domains"
        )
    if images.labels is None:
        raise ValueError(f"--domains {name}: the images have no labels, which accuracy needs")
    return values


def matrix(
    vectors: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    domains: list[str],
    column: str,
    seed: int = 0,
) -> Matrix:
    """Classify each domain's images by the nearest of every domain; those without label or domain stay out.

    Raises ValueError where a domain has fewer than two images.
    """
    known = np.array([bool(domain) for domain in domains]) & (labels >= 0)
    vectors, labels, kinds = vectors[known], labels[known], np.array(domains)[known]
    names = sorted(set(kinds.tolist()))
    rows = {name: np.flatnonzero(kinds == name) for name in names}
    if few := [name for name in names if len(rows[name]) < 2]:
        raise ValueError(
            f"--domains {column}: {few[0]} has a single labelled image; domains need two or more"
        )
    accuracy = np.zeros((len(names), len(names)))
    intervals = np.zeros((len(names), len(names), 2))
    for i, source in enumerate(names):
        bank = vectors[rows[source]], labels[rows[source]]
        for j, target in enumerate(names):
            tested = rows[target]
            predicted = knn.predict(*bank, None if i == j else vectors[tested])
            right = predicted == labels[tested]
            accuracy[i, j], intervals[i, j] = right.mean(), confidence.bootstrap(right, seed)
    sizes = np.array([len(rows[name]) for name in names])
    chance = float(np.bincount(labels).max() / len(labels))
    return Matrix(column, tuple(names), sizes, accuracy, intervals, chance)
