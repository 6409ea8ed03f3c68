"""Several labels an image (multi-label): from lists of names, columns of zeros and ones, or arrays.

Label sets are int8 [n, k]: 1, the class applies; 0, it does not; -1, not known. A row of -1 alone is an
image without labels, which is not an image to which no class applies (a row of zeros).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, Int8

from omma.core.words import count
from omma.data.sources import captions
from omma.data.sources.columns import listed, one_hot, plain, shown, texts
from omma.data.sources.labels import Annotations, encode
from omma.data.sources.tables import IMAGE_NAMES, TRACK

SEPARATORS = ";|"  # between the names in a cell: the first of them that any cell of the column holds
_MOST = 1 << 30  # entries of label sets, and bytes: more are no classes but free texts
_CELLS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1, "": -1, "nan": -1}
_MINUS = ("-1", "-1.0")


def of(images: Any) -> Int8[np.ndarray, "n k"] | None:
    """The label sets of a collection; None where an image has one label or none."""
    return getattr(images, "label_sets", None)


def unlabelled(sets: Int8[np.ndarray, "n k"]) -> Bool[np.ndarray, "n"]:
    """Which images have no labels."""
    return np.all(sets < 0, axis=1)


def strata(sets: Int8[np.ndarray, "n k"]) -> Int[np.ndarray, "n"]:
    """One class an image to split by: the rarest that applies; k where none does, -1 where unlabelled."""
    counts = (sets > 0).sum(axis=0)
    order = np.argsort(counts, kind="stable")
    ranked = sets[:, order] > 0
    rarest = np.where(ranked.any(axis=1), order[ranked.argmax(axis=1)], sets.shape[1])
    return np.where(unlabelled(sets), -1, rarest).astype(np.int64)


def refusal(source: str, classes: Sequence[str], who: str) -> str:
    """A line for what needs one label an image."""
    return (
        f"{source}: its images have several labels each (multi-label, "
        f"{count(len(classes), 'class', 'classes')}), and {who} needs one: give a column `label` with "
        "one a row, or learn from all of them with `omma finetune`"
    )


# ---------------------------------------------------------------- readers
def from_column(table: pa.Table, name: str) -> Annotations | None:
    """Label sets from a column of lists, or of texts such as `cat;dog`; None where no image has several.

    A list may hold names, numbers, or k zeros and ones in every row. An empty list, or a separator alone,
    says that no class applies; null and an empty cell, that it is not known. A column named `label` holds
    one name in a text, whatever it contains. Raises ValueError for free texts.
    """
    column = plain(table[name])
    if pa.types.is_large_list(column.type):
        if pa.types.is_nested(column.type.value_type):
            return None
        rows = column.to_pylist()
        if (dense := _multi_hot(rows)) is not None:
            return None if one_hot(dense[~unlabelled(dense)]) is not None else _dense(dense, f"column {name}")
        sizes = {len(row) for row in rows if row is not None}
        if max(sizes, default=0) < 2 and (name == "label" or sizes <= {1}):
            return None
        return _named(rows, f"column {name}")
    if name == "label":
        return None
    cells = texts(table, name).to_pylist()
    separator = next((each for each in SEPARATORS if any(each in cell for cell in cells if cell)), None)
    if separator is None:
        return None
    rows = [
        [part for each in cell.split(separator) if (part := each.strip())] if cell and cell.strip() else None
        for cell in cells
    ]
    return _named(rows, f"column {name}, names between `{separator}`")


def recognised(table: pa.Table) -> list[str]:
    """The columns of zeros and ones of a table without others but those that mean something else.

    These are paths, a split, captions, the sequence and the frame.
    """
    others = (*IMAGE_NAMES, *TRACK, "split")
    names = [
        name
        for name in table.column_names
        if name.lower() not in others and not captions.COLUMN.fullmatch(name)
    ]
    for name in names:
        try:
            codes = [_CELLS.get((cell or "").strip().lower()) for cell in texts(table, name).to_pylist()]
        except ValueError:
            return []
        if None in codes or not {0, 1} & set(codes):
            return []
    return names if len(names) > 1 else []


def from_columns(table: pa.Table, names: Sequence[str]) -> Annotations:
    """Label sets from a column of zeros and ones for each class, which bears its name.

    An empty cell is not known, and so is -1 where there are zeros; without zeros -1 is no. Raises ValueError.
    """
    cells = [[(cell or "").strip().lower() for cell in texts(table, name).to_pylist()] for name in names]
    values = set().union(*cells)
    minus = bool(values & set(_MINUS))
    zero = any(_CELLS.get(value) == 0 for value in values)
    known = _CELLS | dict.fromkeys(_MINUS, -1 if zero else 0)
    for name, column in zip(names, cells, strict=True):
        row, odd = next(((k, cell) for k, cell in enumerate(column) if cell not in known), (0, None))
        if odd is not None:
            raise ValueError(
                f"column {shown(name)}: row {row + 1} holds {shown(odd, 20)!r}; labels are 0, 1 or nothing"
            )
    sets = np.array([[known[cell] for cell in column] for column in cells], np.int8).T.copy()
    how = f"the columns {listed(names, 5)} of 0 and 1" + minus * (
        "; -1 counts as not known" if zero else "; -1 counts as no"
    )
    return _annotated(sets, tuple(names), how)


def from_array(values: np.ndarray) -> Annotations:
    """Labels [n] as numbers or texts; or zeros and ones [n, k]: one-hot, or label sets if any row is not.

    Classes of the latter are named by their position; a row of -1 has no labels.
    """
    if values.ndim == 1:
        return encode(values.tolist())
    sets = values.astype(np.int8)
    known = ~unlabelled(sets)
    codes = one_hot(sets[known])
    if codes is None:
        return _dense(sets, "an array of zeros and ones")
    labels = np.full(len(sets), None)
    labels[known] = codes
    return encode(labels.tolist())


def _multi_hot(rows: list) -> np.ndarray | None:
    """int8 [n, k] of lists of k > 1 zeros and ones; rows of -1 for null."""
    sizes = {len(row) for row in rows if row is not None}
    if len(sizes) != 1 or (k := sizes.pop()) < 2:
        return None
    if not all(
        type(value) is not str and value in (0, 1) for row in rows if row is not None for value in row
    ):
        return None
    return np.array([[-1] * k if row is None else row for row in rows]).astype(np.int8)


def _dense(sets: np.ndarray, how: str) -> Annotations:
    return _annotated(sets, tuple(map(str, range(sets.shape[1]))), how)


def _named(rows: Sequence[Sequence | None], how: str) -> Annotations:
    """Label sets of rows of names; a row whose names are all missing values is unlabelled."""
    counts = np.array([len(row or ()) for row in rows])
    read = encode([name for row in rows for name in row or ()])
    if read.labels is None:
        return Annotations(notes=read.notes)
    if len(rows) * len(read.classes) > _MOST:
        raise ValueError(
            f"{how}: {len(read.classes):,} different names for {count(len(rows), 'image')} are texts, no "
            "classes; name such a column `text`"
        )
    sets = np.zeros((len(rows), len(read.classes)), np.int8)
    at, known = np.repeat(np.arange(len(rows)), counts), read.labels >= 0
    sets[at[known], read.labels[known]] = 1
    missing = np.array([row is None for row in rows]) | ((counts > 0) & ~(sets > 0).any(axis=1))
    sets[missing] = -1
    return _annotated(sets, read.classes, how, read.notes)


def _annotated(
    sets: np.ndarray, classes: tuple[str, ...], how: str, notes: Sequence[str] = ()
) -> Annotations:
    missing = int(unlabelled(sets).sum())
    if missing == len(sets):
        return Annotations(notes=(f"{how}: no image has a label",))
    none = int((sets == 0).all(axis=1).sum())
    facts = [count(len(classes), "class", "classes")]
    facts += [f"none of them: {count(none, 'image')}"] * bool(none)
    facts += [f"unlabelled: {count(missing, 'image')}"] * bool(missing)
    return Annotations(
        label_sets=sets,
        classes=classes,
        notes=(f"several labels an image ({how}: {'; '.join(facts)})", *notes),
    )
