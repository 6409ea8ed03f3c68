"""Domains of a collection: what a column of its table says (a site, a scanner), or the first folders."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from omma.core.protocols import Images
from omma.core.words import count
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.labels import SPLITS
from omma.data.sources.selection import values_of

MOST = 12  # values of a column that make a matrix
FOLDER = "the first folder"


class Domains(NamedTuple):
    """The domain of each image."""

    name: str  # of the column
    names: tuple[str, ...]  # of the domains, in the order of their text
    codes: Int[np.ndarray, "n"]  # -1: none


def of(images: Images, column: str | None, option: str = "--by") -> Domains:
    """The domains by a column, or without one by the first folders that tell images apart.

    A column without a value for an image leaves it in no domain. option: begins the message of an error.
    Raises ValueError for an unknown column, and unless there are 2 to MOST domains.
    """
    if not isinstance(images, IndexedImages):
        raise ValueError(f"{option}: only a collection that `open_images` opened has domains; give its path")
    if column is None:
        name, values = FOLDER, _first_folders(images)
    else:
        name, values = column, values_of(images, column, f"{option} {column}")
    names = sorted(set(values) - {""})
    if not 2 <= len(names) <= MOST:
        found = count(len(names), "value")
        if column is None:
            raise ValueError(
                f"{images.source}: the folders make no domains ({found}; a matrix needs 2 to {MOST}); name a "
                f"column with {option} COLUMN"
            )
        raise ValueError(
            f"{option} {column}: has {found}, and a matrix needs 2 to {MOST}; choose a column of domains"
        )
    number = {value: k for k, value in enumerate(names)} | {"": -1}
    return Domains(name, tuple(names), np.array([number[value] for value in values], np.int64))


def _first_folders(images: IndexedImages) -> list[str]:
    """Each image's folder at the first level where folders differ; train and test are no domains."""
    folders = [path.split("/")[:-1] for path in values_of(images, "path", "folders")]
    for level in range(min(map(len, folders))):
        names = {folder[level] for folder in folders}
        parts = images.splits is not None and all(name.lower() in SPLITS for name in names)
        if len(names) > 1 and not parts:
            return [folder[level] for folder in folders]
    return [""] * len(folders)
