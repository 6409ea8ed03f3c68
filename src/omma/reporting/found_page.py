"""The page of a search: what was asked, and the images found, nearest first."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from omma.core.words import count
from omma.inspection.neighbours import decimals
from omma.reporting import html
from omma.reporting.html import Section
from omma.reporting.pictures import Cell, Grid

COLUMNS = 6  # of images found


def found_page(
    title: str,
    query: Sequence[tuple[Image.Image | None, str]],
    found: Sequence[Image.Image],
    paths: Sequence[str],
    similarities: np.ndarray,
    labels: Sequence[str],
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> str:
    """The page as the text of an HTML file.

    query: pictures with a text below each, or texts alone; similarities [k]: cosines; labels: "" without one.
    """
    sections = []
    pictures = [Cell(picture, text) for picture, text in query if picture is not None]
    words = [text for picture, text in query if picture is None]
    if pictures:
        sections.append(Section("Asked for", " · ".join(words), [_grid(pictures)]))
    digits = decimals(similarities[None]) if len(similarities) else 2
    cells = [
        Cell(picture, " ".join(filter(None, (f"{similarity:.{digits}f}", label))), path=path)
        for picture, path, similarity, label in zip(found, paths, similarities, labels, strict=True)
    ]
    caption = "Nearest first; below each its cosine similarity, 1 for the same direction of features."
    if not cells:
        caption = "No image of the index meets the condition."
    sections.append(Section(f"Found: {count(len(cells), 'image')}", caption, [_grid(cells)] if cells else []))
    asked = [("asked", " · ".join(words))] if words and not pictures else []
    return html.page(title=title, verdicts=(), facts=(*asked, *facts), sections=sections, notes=notes)


def _grid(cells: Sequence[Cell]) -> Grid:
    rows = [tuple(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    return Grid((), tuple(rows))
