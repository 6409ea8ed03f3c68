"""What is known of each image, as the page colours, filters and lists it: classes, numbers and texts."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int

from omma.core.protocols import Images
from omma.data.sources.columns import texts
from omma.features.table import as_text
from omma.reporting.explore.analysis import Analysis, captions, labels
from omma.weights.model import Model

MOST = 200  # values of a column that are classes; of a column with more, each is a text
FEW = 20  # whole numbers that are classes rather than a scale
_CODE = re.compile(r"[+-]?0\d|.*_")


@dataclass(frozen=True)
class Facet:
    """One column: classes (`values` and the number of each image's, -1 for none), numbers or texts."""

    name: str
    kind: Literal["class", "number", "text"]
    values: tuple[str, ...] = ()
    codes: Int[np.ndarray, "n"] | None = None
    numbers: Float[np.ndarray, "n"] | None = None  # NaN for none
    texts: tuple[str, ...] = ()

    def column(self) -> pa.Array:
        """For a table: text or float64, null for none."""
        if self.kind == "number":
            return pa.array(self.numbers, pa.float64(), from_pandas=True)
        if self.kind == "text":
            return pa.array([text or None for text in self.texts], pa.string())
        assert self.codes is not None
        return pa.array([self.values[c] if c >= 0 else None for c in self.codes.tolist()], pa.string())


def classes(name: str, of: Sequence[str | None], values: Sequence[str] | None = None) -> Facet:
    """A facet of classes, in this order or the most frequent first; of texts where there are too many."""
    count = Counter(value for value in of if value)
    if values is None and len(count) > MOST:
        return Facet(name, "text", texts=tuple(value or "" for value in of))
    known = sorted(count, key=lambda value: (-count[value], value)) if values is None else values
    number = {value: code for code, value in enumerate(known)}
    return Facet(name, "class", tuple(known), np.array([number.get(v or "", -1) for v in of], np.int64))


def number(name: str, of: Float[np.ndarray, "n"]) -> Facet:
    """A facet of numbers; what is not finite is none."""
    return Facet(name, "number", numbers=np.where(np.isfinite(of), of, np.nan))


def of_collection(images: Images) -> list[Facet]:
    """Label, split, folder, the table's other columns, and captions, as far as the collection has them."""
    found, own = [], labels(images)
    if own is not None:
        found.append(classes("label", own))
    if images.splits is not None:
        found.append(classes("split", images.splits.tolist()))
    folders = [
        as_text(PurePosixPath(images.path(i).replace("\\", "/")).parent.name) for i in range(len(images))
    ]
    if 1 < len({*folders}) <= MOST and folders != own:
        found.append(classes("folder", folders))
    table: pa.Table | None = getattr(images, "columns", None)
    taken = {facet.name for facet in found} | {"label", "labels", "split"}
    for name in [] if table is None else table.column_names:
        facet = None if name in taken else _of_column(table, name)
        if facet is not None and (own is None or facet.column().to_pylist() != own):  # it names the labels
            found.append(facet)
    written = captions(images)
    if written is not None:
        found.append(Facet("caption", "text", texts=tuple(written)))
    return found


def joined(*groups: Sequence[Facet]) -> list[Facet]:
    """All facets, each of a name of its own: of two with one name the later gets a number."""
    found: dict[str, Facet] = {}
    for facet in (facet for group in groups for facet in group):
        name, copy = facet.name, 2
        while name in found:
            name, copy = f"{facet.name} {copy}", copy + 1
        found[name] = replace(facet, name=name)
    return list(found.values())


def of_analysis(found: Analysis) -> list[Facet]:
    """Cluster, distance to the neighbours and, with labels, the share of neighbours that have the same."""
    names = [found.clusters.names[c] for c in found.clusters.of.tolist()]
    facets = [classes("cluster", names, found.clusters.names)]
    if found.neighbours is not None:
        facets.append(number("distance", found.neighbour_distance))
    if found.agreement is not None:
        facets.append(number("agreement", found.agreement))
    return facets


def of_model(model: Model, vectors: Float[np.ndarray, "n d"]) -> list[Facet]:
    """The class that a model's classifier gives, and its calibrated probability; none for what reads more.

    A DeiT's second head reads a token that is not in the vectors, and several labels have no first one.
    """
    classifier = model.classifier
    if classifier is None or classifier.distilled is not None or classifier.multi_label:
        return []
    with torch.inference_mode():
        p = classifier.probabilities(classifier.logits(torch.from_numpy(vectors))).numpy()
    names = [classifier.classes[c] for c in p.argmax(1)]
    return [classes("predicted", names), number("confidence", p.max(1))]


def _of_column(table: pa.Table, name: str) -> Facet | None:
    """A column as classes, numbers or texts; None if it is empty or cannot be read as any."""
    try:
        found = texts(table, name, lenient=True).to_pylist()
    except ValueError:
        return None
    of = [as_text((text or "").strip()) for text in found]
    known = {*of} - {""}
    if not known:
        return None
    values = _numbers(of)  # a .csv's columns are texts, whatever they hold
    if values is not None:
        finite = values[np.isfinite(values)]
        if len(known) > FEW or (finite % 1).any():
            return number(name, values)
    if len(known) > FEW and 2 * len(known) > len(of):  # hardly a value twice: names, not classes
        return Facet(name, "text", texts=tuple(of))
    return classes(name, of)


def _numbers(of: Sequence[str]) -> Float[np.ndarray, "n"] | None:
    """Texts as numbers, NaN for none; None if any is no number, or begins with a zero as codes do."""
    try:
        values = np.array([float(text) if text else np.nan for text in of])
    except ValueError:
        return None
    return None if any(_CODE.match(text) for text in of) or not np.isfinite(values).any() else values
