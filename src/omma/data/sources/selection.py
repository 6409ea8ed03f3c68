"""What columns of a table say when the user names them: parts to train and to test on, and label sets."""

import fnmatch
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from omma.core.protocols import Images
from omma.core.words import count
from omma.data.sources import label_sets
from omma.data.sources.columns import is_nested, listed, texts
from omma.data.sources.indexed import IndexedImages


def split_by(images: Images, train_on: Sequence[str], test_on: Sequence[str]) -> Images:
    """The images of both parts, with their split; each part is named by COLUMN=VALUE, of several any.

    COLUMN is a column of the collection's table; `path` takes a pattern such as photo/*, whose * is any
    text, with / in it too. `class` is the class's name where no column has this name. A part not named is
    the rest. Raises ValueError for an unknown column or value, and for parts that overlap or are empty.
    """
    if not train_on and not test_on:
        return images
    if not isinstance(images, IndexedImages):
        raise ValueError("parts can be chosen of a collection that `open_images` opened; give its path")
    test = _matches(images, test_on, "--test-on") if test_on else ~_matches(images, train_on, "--train-on")
    train = _matches(images, train_on, "--train-on") if train_on else ~test
    if both := int((train & test).sum()):
        raise ValueError(
            f"{images.source}: {count(both, 'image is', 'images are')} in both parts; "
            "name parts that do not overlap"
        )
    rows = np.flatnonzero(train | test)
    parts = images.subset(rows)
    parts.splits = np.where(train[rows], "train", "test").astype("U5")
    names = [" or ".join(words) or "the rest" for words in (train_on, test_on)]
    parts.split_name = f"trained on {names[0]}, tested on {names[1]}"
    return parts


def labelled_by(images: IndexedImages, names: Sequence[str]) -> IndexedImages:
    """The collection with several labels an image: of each class, the table has a column of zeros and ones.

    An empty cell is not known, and so is -1 where there are zeros; without zeros -1 is no. Other labels are
    dropped. Raises ValueError for an unknown column, or one that holds anything else.
    """
    if not names:
        return images
    known = [] if images.columns is None else images.columns.column_names
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"--label-columns {unknown[0]}: {images.source} has no such column; choose among {listed(known)}"
        )
    assert images.columns is not None
    read = label_sets.from_columns(images.columns, list(dict.fromkeys(names)))
    chosen = images.subset(np.arange(len(images)))
    chosen.labels, chosen.label_sets, chosen.classes = None, read.label_sets, read.classes
    chosen.notes = (*images.notes, *read.notes)
    return chosen


def _matches(images: IndexedImages, conditions: Sequence[str], option: str) -> np.ndarray:
    """bool [n]: the images that meet any of the conditions."""
    chosen = np.zeros(len(images), bool)
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if not equals or not column:
            raise ValueError(
                f"{option} {condition}: write COLUMN=VALUE, such as domain=photo or path=photo/*"
            )
        values = values_of(images, column.strip(), f"{option} {column.strip()}=...")
        value = unicodedata.normalize("NFC", value.strip())
        if column.strip() == "path":
            rows = np.array([fnmatch.fnmatchcase(each, value) for each in values], bool)
        else:
            rows = np.array([each == value for each in values], bool)
        if not rows.any():
            common = listed(each for each, _ in Counter(values).most_common() if each)
            raise ValueError(f"{option} {condition}: no image matches; {column.strip()} is one of {common}")
        chosen |= rows
    return chosen


def values_of(images: IndexedImages, name: str, asked: str) -> list[str]:
    """A column's values as text, "" where there is none; asked: what begins the message of an error.

    `path` and `class` are columns of every collection that has such. Raises ValueError for an unknown one.
    """
    if name == "path":
        values = [images.path(i).replace("\\", "/") for i in range(len(images))]
    elif images.columns is not None and name in images.columns.column_names:
        if is_nested(images.columns[name].type):
            raise ValueError(
                f"{asked}: column {name} of {images.source} holds lists; choose one of single values"
            )
        values = [value or "" for value in texts(images.columns, name).to_pylist()]
    elif name == "class" and images.labels is not None:
        values = [images.classes[label] if label >= 0 else "" for label in images.labels.tolist()]
    else:
        known = [] if images.columns is None else images.columns.column_names
        columns = listed(["path", *known])
        raise ValueError(f"{asked}: {images.source} has no column {name}; choose among {columns}")
    return [unicodedata.normalize("NFC", value.strip()) for value in values]
