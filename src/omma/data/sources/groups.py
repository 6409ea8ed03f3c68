"""Groups of images that belong together, such as the frames of a sequence, the tiles of a slide or a site.

Images of one group are alike for reasons that a new group does not share. A split that puts some of them on
either side therefore measures memory, not what a model does on a new group (Kaufman et al. 2012, "Leakage in
data mining", ACM TKDD 6(4)).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from omma.core.protocols import Images
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.selection import values_of
from omma.data.sources.tables import SEQUENCE

FOLDER = "folder"
NONE = "none"


class Groups(NamedTuple):
    """The group of each image of a collection."""

    name: str  # of the column
    codes: Int[np.ndarray, "n"]  # at least 0; images of one code belong together
    asked: bool = False  # was the column named, rather than taken by default?

    @property
    def number(self) -> int:
        """How many groups there are."""
        return len(np.unique(self.codes))

    def of_rows(self, rows: Int[np.ndarray, "m"]) -> "Groups":
        """Those of some of the images."""
        return self._replace(codes=self.codes[rows])

    def on_both_sides(self, one: Int[np.ndarray, "a"], other: Int[np.ndarray, "b"]) -> Int[np.ndarray, "k"]:
        """Codes of the groups that have images in both parts; one, other: rows."""
        return np.intersect1d(self.codes[one], self.codes[other])

    def leaking(self, train: Int[np.ndarray, "a"], test: Int[np.ndarray, "b"]) -> float:
        """The share of the test rows that have others of their group in the train part; 0 without rows."""
        return float(np.isin(self.codes[test], self.codes[train]).mean()) if len(test) else 0.0


def of(images: Images, column: str | None = None) -> Groups | None:
    """The groups by a column of the collection's table; None where there are none.

    column: None takes `sequence` where the table has it; "none" makes no groups. `path` and `class` are
    columns too, and `folder` is the folder that holds the image where no column has this name. An image
    without a value is a group of its own. Raises ValueError for an unknown column.
    """
    if column == NONE:
        return None
    known = (
        [] if not isinstance(images, IndexedImages) or images.columns is None else images.columns.column_names
    )
    if column is None and SEQUENCE not in known:
        return None
    if not isinstance(images, IndexedImages):
        raise ValueError(
            f"--group {column}: only a collection that `open_images` opened has columns; give its path"
        )
    name = column or SEQUENCE
    if name == FOLDER and FOLDER not in known:
        values = [path.rpartition("/")[0] or "." for path in values_of(images, "path", "--group")]
    else:
        values = values_of(images, name, f"--group {name}")
    return Groups(name, codes_of(values), column is not None)


def codes_of(values: list[str]) -> Int[np.ndarray, "n"]:
    """A number for each distinct value, in the order of their text; "" is a new one each time."""
    texts = np.asarray(values, np.str_)
    missing = texts == ""
    codes = np.unique(texts, return_inverse=True)[1].reshape(-1).astype(np.int64)
    codes[missing] = len(texts) + np.arange(int(missing.sum()))
    return np.unique(codes, return_inverse=True)[1].reshape(-1).astype(np.int64)
