"""Thumbnails in sheets: a JPEG holds a square of them, so that a page decodes few files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from omma.core.device import cores
from omma.core.progress import Progress
from omma.core.protocols import Images
from omma.reporting.explore.target import LARGEST, SMALLEST
from omma.reporting.thumbnails import MISSING, jpeg, thumbnail

SHEET = 1024  # pixels of a sheet's side at most: 4 MB when it is decoded
SIDES = (
    LARGEST,
    160,
    128,
    96,
    80,
    64,
    56,
    48,
    40,
    32,
    24,
    SMALLEST,
)  # of thumbnails; multiples of JPEG's blocks
QUALITY = 75
SAMPLE = 64  # images whose thumbnails tell the bytes of all


class Sheet(NamedTuple):
    """Some thumbnails in one picture, from the top left, row by row."""

    jpeg: bytes
    sizes: list[tuple[int, int]]  # (width, height) of each, in its square's top left corner


def per_row(side: int) -> int:
    """Thumbnails in a row, and rows, of a sheet."""
    return max(1, SHEET // side)


def fitting_side(images: Images, rows: Int[np.ndarray, "n"], budget: float) -> int:
    """The largest of SIDES whose thumbnails of all rows take no more bytes than that, by those of a sample.

    No larger than needed for the largest image of the sample, and the smallest one where none fits.
    """
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int))]
    with ThreadPoolExecutor(min(cores(), 16)) as pool:
        pictures = list(pool.map(lambda i: thumbnail(images, int(i), LARGEST), chosen))
    own = max(max(picture.size) for picture in pictures)
    useful = [side for side in SIDES if side < own or side == min(s for s in SIDES if s >= min(own, LARGEST))]
    for side in useful:
        sample = [picture.copy() for picture in pictures]
        for picture in sample:
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        grid = int(np.ceil(np.sqrt(len(sample))))
        if len(_sheet(sample, side, grid).jpeg) / len(sample) * len(rows) <= budget:
            return side
    return SMALLEST


def sheets(
    images: Images, rows: Int[np.ndarray, "n"], side: int, progress: Progress | None = None
) -> Iterator[Sheet]:
    """Thumbnails of these images, in that order, `per_row(side)` squared of them a sheet."""
    grid = per_row(side)
    with ThreadPoolExecutor(min(cores(), 16)) as pool:
        for start in range(0, len(rows), grid * grid):
            own = rows[start : start + grid * grid]
            yield _sheet(list(pool.map(lambda i: thumbnail(images, int(i), side), own)), side, grid)
            if progress:
                progress(start + len(own), len(rows))


def _sheet(pictures: list[Image.Image], side: int, grid: int) -> Sheet:
    columns, lines = min(grid, len(pictures)), -(-len(pictures) // grid)
    sheet = Image.new("RGB", (columns * side, lines * side), MISSING)
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % grid * side, k // grid * side))
    return Sheet(jpeg(sheet, QUALITY), [picture.size for picture in pictures])
