"""Which classes are taken for which: counts, the worst pairs in words, a table, and a file."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy import sparse

from omma.core import files


class Pair(NamedTuple):
    """Test images of one class that were taken for another."""

    true: int
    predicted: int
    images: int  # that were taken for it
    of: int  # test images of the true class


def matrix(
    labels: Int[np.ndarray, "m"], predictions: Int[np.ndarray, "m"], classes: int
) -> Int[sparse.csr_array, "c c"]:
    """How many images of each class (rows) were answered each class (columns)."""
    ones = np.ones(len(labels), np.int64)
    return sparse.csr_array(sparse.coo_array((ones, (labels, predictions)), shape=(classes, classes)))


def worst(counts: Int[sparse.csr_array, "c c"], most: int = 20) -> list[Pair]:
    """The pairs that most images were confused in; of equal ones that of the smaller class first."""
    sizes = counts.sum(1)
    entries = sparse.coo_array(counts)
    pairs = [
        Pair(int(i), int(j), int(n), int(sizes[i]))
        for i, j, n in zip(*entries.coords, entries.data, strict=True)
        if i != j and n
    ]
    return sorted(pairs, key=lambda p: (-p.images, p.of, p.true, p.predicted))[:most]


def sentence(pair: Pair, names: Sequence[str]) -> str:
    share = f"{pair.images:,} of {pair.of:,} ({pair.images / pair.of:.0%})"
    return f"{names[pair.true]} taken for {names[pair.predicted]}: {share}"


def write_csv(file: str | Path, counts: Int[sparse.csr_array, "c c"], names: Sequence[str]) -> None:
    """A row a true class, a column a predicted class; the first row and the first column hold their names."""
    with files.atomic_write(Path(file)) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows(_rows(counts, names))


def _rows(counts: Int[sparse.csr_array, "c c"], names: Sequence[str]) -> Iterator[list[str | int]]:
    for k, name in enumerate(names):
        yield [name, *counts[[k]].toarray()[0].tolist()]
