"""What is known of images beside their pixels, and how labels become numbers."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from omma.data.sources.columns import listed
from omma.data.sources.tables import ENDINGS, LABELS

SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "testing", "val", "valid", "validation", "dev", "eval"), "test"
)


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Labels, splits and captions of images, as in `Images`; None where there are none."""

    labels: np.ndarray | None = None
    label_sets: np.ndarray | None = None  # of images with several labels, instead of `labels` (label_sets.py)
    classes: tuple[str, ...] = ()
    splits: np.ndarray | None = None
    text: pa.LargeListArray | None = None  # each image's captions; null for one that is not valid UTF-8
    notes: tuple[str, ...] = ()  # what to know of how labels were read, and why any were not
    columns: pa.Table | None = None  # texts and numbers of a table's other columns

    def take(self, rows: Int[np.ndarray, "m"]) -> "Annotations":
        """Those of some images, any of them several times."""
        at = pa.array(rows)
        return replace(
            self,
            labels=None if self.labels is None else self.labels[rows],
            label_sets=None if self.label_sets is None else self.label_sets[rows],
            splits=None if self.splits is None else self.splits[rows],
            text=None if self.text is None else self.text.take(at),
            columns=None if self.columns is None else self.columns.take(at),
        )


_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")  # as writers of tables put it: not 007, +1 or 1_0
_LOOSE = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?")
_NO_NUMBER = frozenset(("na", "n/a", "<na>", "none", "null"))  # in a column of numbers: no value
_LONGEST = 60  # characters of a label in a message


def encode(values: Iterable, names: Iterable | None = None) -> Annotations:
    """Encode labels (numbers or texts) as 0 .. k-1, sorted, numbers as numbers.

    Texts that differ are classes that differ, but for white space around them and for Unicode's ways of
    composing a letter (NFC); in a column of numbers a whole float equals its integer (2.0 is 2). Missing and
    empty labels and NaN become -1; labels are None if no other is left. `names`: the class name of each row,
    if it differs from the label. Notes say what a reader may not expect.
    """
    raw = [_text(value) for value in values]
    counts = Counter(raw)
    spelling = {each: unicodedata.normalize("NFC", each.strip()) for each in counts}
    present = {text for text in spelling.values() if text} - {"nan", "NaN", "NAN"}
    is_numeric = _are_numbers(present)
    missing = {t for t in spelling.values() if t and t not in present}
    if is_numeric:
        missing |= {text for text in present if text.lower() in _NO_NUMBER}
        present -= missing
    if not present:
        return Annotations(notes=_missing_notes(missing, counts, spelling))
    key = _merged(present) if is_numeric else {text: text for text in present}
    order = sorted(set(key.values()), key=_sorting(present))
    code = {text: k for k, text in enumerate(order)}
    code = {each: code[key[text]] if text in key else -1 for each, text in spelling.items()}
    notes = [
        *_missing_notes(missing, counts, spelling),
        *_negative_notes(order, is_numeric),
        *_alike_notes(order, counts, spelling),
    ]
    labels = np.array([code[each] for each in raw], np.int64)
    classes = tuple(order)
    if names is not None:
        classes, more = _named(labels, order, names)
        notes += more
    return Annotations(labels=labels, classes=classes, notes=tuple(notes))


def _text(value: Any) -> str:
    """A label as text; "" for a missing one."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def _are_numbers(present: set[str]) -> bool:
    numbers = [text for text in present if text.lower() not in _NO_NUMBER]
    return bool(numbers) and all(map(_NUMBER.fullmatch, numbers))


def _merged(present: set[str]) -> dict[str, str]:
    """The class of each number: whole floats have their integer's."""
    groups: dict[str, list[str]] = {}
    for text in present:
        whole, _, rest = text.partition(".")
        groups.setdefault(text if rest.strip("0") else whole, []).append(text)
    if all(_whole(text) for text in present):
        return {text: group for group, same in groups.items() for text in same}
    return {text: min(same, key=len) for same in groups.values() for text in same}


def _whole(text: str) -> bool:
    return not text.partition(".")[2].strip("0")


def _sorting(present: set[str]) -> Callable[[str], Any]:
    if all(map(_LOOSE.fullmatch, present)):
        return lambda text: (Decimal(text), text)
    return lambda text: text


def images(n: int) -> str:
    """So many images, in words."""
    return f"{n:,} image{'s' * (n != 1)}"


def shortened(text: str) -> str:
    """A label for a message."""
    return repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "...")


def _missing_notes(missing: set[str], counts: Counter[str], spelling: dict[str, str]) -> tuple[str, ...]:
    n = sum(count for each, count in counts.items() if spelling[each] in missing)
    spelled = ", ".join(map(shortened, sorted(missing)[:3]))
    return (f"the label {spelled} counts as none ({images(n)})",) if missing else ()


def _negative_notes(order: list[str], is_numeric: bool) -> Iterator[str]:
    """-1 beside 0, 1, 2, ... often means that an image has no label."""
    if is_numeric and "-1" in order and order != ["-1", "1"] and sum(t.startswith("-") for t in order) == 1:
        yield "the label -1 is a class like any other; leave the label empty where an image has none"


def _alike_notes(order: list[str], counts: Counter[str], spelling: dict[str, str]) -> Iterator[str]:
    """Classes that differ only in case, or whose names are those of missing values; labels that are cut."""
    groups: dict[str, list[str]] = {}
    for text in order:
        groups.setdefault(" ".join(text.casefold().replace("_", " ").split()), []).append(text)
    for alike in [group for group in groups.values() if len(group) > 1][:3]:
        spelled = " and ".join(map(shortened, alike[:3]))
        yield f"the labels {spelled} are different classes; spell them alike if they are one"
    for text in order:
        if text.lower() in _NO_NUMBER:
            n = sum(count for each, count in counts.items() if spelling[each] == text)
            yield f"the label {shortened(text)} ({images(n)}) is a class; leave it empty where there is none"


def _named(labels: np.ndarray, order: list[str], names: Iterable) -> tuple[tuple[str, ...], list[str]]:
    """Each class by the name in its first row that has one, and what is odd about the names."""
    named: dict[int, str] = {}
    several: dict[int, str] = {}
    for code, value in zip(labels.tolist(), names):
        name = unicodedata.normalize("NFC", _text(value).strip())
        if name and code >= 0 and named.setdefault(code, name) != name:
            several.setdefault(code, name)
    classes = tuple(named.get(code, text) for code, text in enumerate(order))
    notes = [
        f"the label {shortened(order[code])} has several names; the first, {shortened(named[code])}, is used "
        f"(another: {shortened(other)})"
        for code, other in list(several.items())[:3]
    ]
    for name in [name for name, n in Counter(classes).items() if n > 1][:3]:
        of = " and ".join(shortened(order[k]) for k, each in enumerate(classes) if each == name)
        notes.append(f"the labels {of} are different classes of one name, {shortened(name)}")
    return classes, notes


def remedy(collection: Any) -> str:
    """Why images have no labels, as far as that is known, and what to do."""
    why: list[str] = list(getattr(collection, "notes", ()))
    columns = getattr(collection, "columns", None)
    if columns is not None and not set(LABELS) & set(columns.column_names):
        why.append(f"no column is named label (there are {listed(columns.column_names)})")
    beside = [path for path, _ in getattr(collection, "skipped", ()) if path.lower().endswith(ENDINGS)]
    if top := [path for path in beside if "/" not in path]:
        why.append(f"beside the images only labels.csv is read: rename it if it is {listed(top, 3)}")
    return "; ".join(
        [*why, "put images into one folder a class, or give a table with the columns path and label"]
    )
