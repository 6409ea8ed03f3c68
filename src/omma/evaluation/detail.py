"""What an evaluation says of single classes: a table, confusions, and images that show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy import sparse

from omma.evaluation import NAMES, confusion
from omma.evaluation.metrics import Metrics
from omma.evaluation.split import Answer

EXAMPLES = 4  # images of a confused pair that are named
SHOWN = 20  # classes in the printed table, and confused pairs
COLUMNS = {"precision": "precision", "recall": "recall", "f1": "F1", "ap": "AP"}
PRIMARY = (
    "classifier",
    "linear",
    "ridge",
    "zeroshot",
    "knn",
)  # whose details are printed: the first there is


@dataclass(frozen=True, kw_only=True)
class Detail:
    """One protocol's answers, class by class."""

    protocol: str
    k: int | None
    names: tuple[str, ...]  # of the classes
    order: Int[np.ndarray, "c"]  # of the classes where confusions are drawn
    metrics: Metrics
    confusions: Int[sparse.csr_array, "c c"]
    pairs: tuple[confusion.Pair, ...]
    examples: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]  # of each pair: paths of images of the
    # first class that were taken for the second, and of images of the second class

    def sentences(self) -> list[str]:
        """The confusions of more than one image, in words; of one, if there are no others."""
        several = [pair for pair in self.pairs if pair.images > 1]
        return [confusion.sentence(pair, self.names) for pair in several or self.pairs]

    @property
    def title(self) -> str:
        return f"Classes by the {NAMES[self.protocol]}, worst F1 first"

    def table(self, most: int = SHOWN) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows as text: the classes of lowest F1, in per cent with 95 % intervals."""
        rows = sorted(self.rows(), key=lambda row: (row["f1"], row["class"]))
        figures = [name for name in COLUMNS if name in self.metrics.by_class]
        cells = [
            [row["class"], f"{row['n_test']:,}", *(_cell(row, name) for name in figures)]
            for row in rows[:most]
        ]
        if (rest := len(rows) - most) > 0:
            cells.append([f"and {rest:,} more", "", *[""] * len(figures)])
        return ["class", "test images", *(COLUMNS[name] for name in figures)], cells

    def rows(self) -> list[dict[str, Any]]:
        """A row a class that the test part has or that was answered, with values and their intervals."""
        support, predicted = self.metrics.support.tolist(), self.metrics.predicted.tolist()
        rows = []
        for k in [k for k in range(len(self.names)) if support[k] or predicted[k]]:
            row: dict[str, Any] = {"class": self.names[k], "n_test": support[k], "n_answered": predicted[k]}
            for name, each in self.metrics.by_class.items():
                if not np.isnan(each.value[k]):
                    low, high = each.interval95[k].tolist()
                    row |= {name: float(each.value[k]), f"{name}_interval95": [low, high]}
            rows.append(row)
        return rows

    def to_json(self) -> dict[str, Any]:
        """Confusions are [true, predicted, images], the classes by their number in `classes`."""
        entries = sparse.coo_array(self.confusions)
        triples = zip(*(x.tolist() for x in entries.coords), entries.data.tolist(), strict=True)
        pairs = [
            {"true": self.names[p.true], "predicted": self.names[p.predicted], "images": p.images, "of": p.of}
            | {"taken": list(taken), "like": list(like)}
            for p, (taken, like) in zip(self.pairs, self.examples, strict=True)
        ]
        return {
            "protocol": self.protocol,
            **({} if self.k is None else {"k": self.k}),
            "classes": list(self.names),
            "order": self.order.tolist(),
            "by_class": self.rows(),
            "confusions": [list(each) for each in triples],
            "pairs": pairs,
        }


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    low, high = row[f"{name}_interval95"]
    return f"{100 * row[name]:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def detail(
    protocol: str,
    k: int | None,
    answer: Answer,
    labels: Int[np.ndarray, "m"],
    names: Sequence[str],
    order: Int[np.ndarray, "c"] | None,
    metrics: Metrics,
    path: Any,
) -> Detail:
    """order: of the classes, where a taxonomy gives one; path: of each test image, by its number."""
    counts = confusion.matrix(labels, answer.predictions, len(names))
    pairs = confusion.worst(counts)
    examples = []
    for pair in pairs:
        taken = np.flatnonzero((labels == pair.true) & (answer.predictions == pair.predicted))
        like = np.flatnonzero((labels == pair.predicted) & (answer.predictions == pair.predicted))
        if not len(like):
            like = np.flatnonzero(labels == pair.predicted)
        examples.append(tuple(tuple(map(path, rows[:EXAMPLES].tolist())) for rows in (taken, like)))
    return Detail(
        protocol=protocol,
        k=k,
        names=tuple(names),
        order=np.arange(len(names)) if order is None else order,
        metrics=metrics,
        confusions=counts,
        pairs=tuple(pairs),
        examples=tuple(examples),
    )


def primary(details: Sequence[Detail]) -> Detail | None:
    """The detail that is printed."""
    return min(details, key=lambda each: PRIMARY.index(each.protocol), default=None)


def write_matrices(file: str | Path, details: Sequence[Detail]) -> list[Path]:
    """Write each protocol's confusion matrix, of several to FILE-PROTOCOL.csv; returns their paths."""
    written = []
    details = [each for each in details if each.confusions.nnz]  # none of images with several labels
    for each in details:
        path = Path(file)
        if len(details) > 1:
            path = path.with_name(f"{path.stem}-{each.protocol}{path.suffix}")
        confusion.write_csv(path, each.confusions, each.names)
        written.append(path)
    return written
