"""How many of the true nearest an approximate engine finds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from omma.retrieval.store import Index

K = 10  # neighbours of a query
QUERIES = 200

Engine = Callable[[Float[np.ndarray, "m d"], int], Int[np.ndarray, "m k"]]


class Recall(NamedTuple):
    """The mean share of a query's k exact neighbours that were found, with its standard error."""

    value: float
    error: float
    queries: int
    k: int

    def __str__(self) -> str:
        return f"recall@{self.k} {self.value:.3f} ± {1.96 * self.error:.3f} on {self.queries:,} queries"

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(self._asdict())


def sampled(index: Index, seed: int = 0, queries: int = QUERIES) -> Float[np.ndarray, "m d"]:
    """Queries that are near the index's images, and none of them: between two of its nearest.

    A row itself would be found too easily: its first neighbour is itself.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(index))[:queries])
    vectors = index.vectors(rows)
    if len(index) < 2:
        return vectors
    found = index.search(vectors, 2).indices[:, 1]
    return (vectors + index.vectors(found)) / 2


def measured(index: Index, engine: Engine, queries: Float[np.ndarray, "m d"], k: int = K) -> Recall:
    """Of this engine against the exact search; its rows are numbered as the index's."""
    exact = index.search(queries, k).indices
    return compared(exact, engine(queries, exact.shape[1]))


def compared(exact: Int[np.ndarray, "m k"], found: Int[np.ndarray, "m j"]) -> Recall:
    """Of rows found, -1 where an engine has found fewer."""
    shares = np.array([len({*a.tolist()} & {*b.tolist()}) / len(a) for a, b in zip(exact, found)])
    error = float(shares.std() / np.sqrt(len(shares)))
    return Recall(float(shares.mean()), error, len(shares), exact.shape[1])
