"""Labels, splits and captions of images from the rows of a table."""

import numpy as np
import pyarrow as pa

from omma.data.sources import captions, label_sets
from omma.data.sources.columns import are_numbers, is_nested, texts
from omma.data.sources.labels import SPLITS, Annotations, encode, shortened
from omma.data.sources.tables import CLASS_NAMES, LABELS, PATHS


def from_table(table: pa.Table, recognise: bool = True) -> Annotations:
    """Labels, splits and captions from a table whose rows are the images.

    Labels are in `label`, else in `class`, `class_name` or `name`, which beside `label` holds the names of
    classes. Several an image: lists in `label`; a column `labels` of lists or of texts such as `cat;dog`; or
    (`recognise`) two or more columns of zeros and ones where the table has no others. An image without a
    split is a training image. Notes say why a column cannot be used.
    """
    labels, notes = Annotations(), []
    try:
        labels = _labels(table, recognise)
    except ValueError as error:
        notes.append(str(error))
    splits, more = _splits(table)
    return Annotations(
        labels=labels.labels,
        label_sets=labels.label_sets,
        classes=labels.classes,
        splits=splits,
        text=captions.from_table(table),
        notes=(*notes, *labels.notes, *more),
        columns=_others(table),
    )


def _labels(table: pa.Table, recognise: bool) -> Annotations:
    columns = table.column_names
    name = next((column for column in CLASS_NAMES if column in columns), None)
    names = None if name is None else texts(table, name).to_pylist()
    for column in ("label", "labels"):
        if column in columns:
            if (sets := label_sets.from_column(table, column)) is not None:
                return sets
            if column == "label" or names is None:
                return encode(texts(table, column).to_pylist(), names)
    if names is not None:
        return encode(names)
    ones = label_sets.recognised(table) if recognise else []
    return label_sets.from_columns(table, ones) if ones else Annotations()


def _splits(table: pa.Table) -> tuple[np.ndarray | None, list[str]]:
    if "split" not in table.column_names:
        return None, []
    try:
        values = [(value or "").strip() for value in texts(table, "split").to_pylist()]
    except ValueError as error:
        return None, [str(error)]
    sides = [SPLITS.get(value.lower()) if value else "train" for value in values]
    if None in sides:
        unknown = shortened(values[sides.index(None)])
        return None, [f"the column split is not used: {unknown} is none of train, val and test"]
    return np.array(sides, "U5"), []


def _others(table: pa.Table) -> pa.Table | None:
    """The columns of texts and numbers, by which parts of the collection can be chosen, and of lists."""
    columns = {}
    for name in table.column_names:
        kind = table[name].type
        nested = is_nested(kind) and (name in LABELS or not _are_lists_of_numbers(kind))
        if name not in PATHS and not captions.COLUMN.fullmatch(name) and not nested:
            columns[name] = table[name]
    return pa.table(columns) if columns else None


def _are_lists_of_numbers(kind: pa.DataType) -> bool:
    return pa.types.is_large_list(kind) and are_numbers(kind.value_type)
