"""What was found of a collection's images, as one table: the most important first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from omma.core.protocols import Images
from omma.features import records
from omma.features.table import as_text

# What each finding is, the most important first.
KINDS = {
    "broken": "It cannot be read as an image of this collection.",
    "inaccessible": "It could not be read this time (permission, network, disk).",
    "leakage": "It is a copy of an image on the other side: scores on these images flatter.",
    "mislabelled": "A classifier that did not see it is sure of another label.",
    "blank": "There is next to nothing in it.",
    "duplicate": "It is a copy of another image.",
    "dark": "Next to all of it is dark.",
    "bright": "Next to all of it is bright.",
    "blurred": "Nothing in it is in focus.",
    "odd-sized": "Its size or shape is far from the others'.",
    "outlier": "It is unlike all others, as the model sees them.",
}
# What is removed by default: these are faults without judgement of what the owner wants.
CERTAIN = ("broken", "leakage", "blank", "duplicate")
DIGITS = 6


@dataclass(frozen=True)
class Finding:
    """One finding of one image.

    score: larger is worse, within a kind: robust deviations from the collection's median, the similarity of
    copies, for labels 1 - the probability of the given one.
    """

    row: int  # the image; -1: a file of the source that is none, named by `path`
    kind: str
    score: float
    detail: str
    path: str = ""  # of a file that is no image of the collection
    related: str = ""  # path of another image: the one that it is a copy of
    related_row: int = -1  # the same as a row; -1: there is none
    elsewhere: bool = False  # whether that row is of the other collection, given by --against
    given: str = ""  # label
    suggested: str = ""
    probability: float | None = None  # of the suggested label, out of fold
    removable: bool = True  # False: another image of a group of copies is removed, or it is in the test part


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """By kind, the most important first, then by score, then by row."""
    place = {kind: k for k, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda each: (place[each.kind], -each.score, each.row, each.path))


def counted(findings: Iterable[Finding]) -> dict[str, int]:
    """How many images each kind has, in the order of KINDS, without kinds that have none."""
    found: dict[str, set] = {kind: set() for kind in KINDS}
    for each in findings:
        found[each.kind].add((each.row, each.path))
    return {kind: len(images) for kind, images in found.items() if images}


SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("finding", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("detail", pa.string()),
        pa.field("related", pa.string()),
        pa.field("label", pa.string()),
        pa.field("suggested_label", pa.string()),
        pa.field("probability", pa.float64()),
        pa.field("split", pa.string()),
    ]
)


def write(out: Path, findings: Sequence[Finding], images: Images) -> None:
    """Write the findings in this order: one row a finding; an empty table has its header.

    Columns: path (as the collection names it), finding, score, detail, related (path of the image that it is
    a copy of), label (given), suggested_label, probability (of the latter), split.
    """
    rows = [
        {
            "path": as_text(images.path(each.row) if each.row >= 0 else each.path),
            "finding": each.kind,
            "score": round(float(each.score), DIGITS),
            "detail": each.detail,
            "related": as_text(each.related) if each.related else None,
            "label": each.given or label_of(images, each.row) or None,
            "suggested_label": each.suggested or None,
            "probability": None if each.probability is None else round(float(each.probability), DIGITS),
            "split": split_of(images, each.row) or None,
        }
        for each in findings
    ]
    with records.writer(out, SCHEMA) as append:
        append(pa.Table.from_pylist(rows, SCHEMA))


def label_of(images: Images, row: int) -> str:
    """The names of an image's labels, joined by `;`; "" without any."""
    if row < 0:
        return ""
    sets = getattr(images, "label_sets", None)
    if sets is not None:
        return ";".join(name for name, value in zip(images.classes, sets[row]) if value > 0)
    label = -1 if images.labels is None else int(images.labels[row])
    return images.classes[label] if label >= 0 else ""


def split_of(images: Images, row: int) -> str:
    """ "train", "test" or ""."""
    return "" if row < 0 or images.splits is None else str(images.splits[row])
