"""A page that shows what was chosen of a pool, cluster by cluster."""

import os
from pathlib import Path

import numpy as np

from omma.core.words import count
from omma.curation.pool import Pool
from omma.curation.selection import Selection, notes_on
from omma.data.sources import collection
from omma.reporting import html
from omma.reporting.pictures import Cell, Grid
from omma.reporting.thumbnails import thumbnail

CLUSTERS = 24  # shown, the largest share of the list first
EACH = 8  # images of each
SIDE = 96  # pixels


def write(out: Path, pool: Pool, selection: Selection) -> Path:
    """Write the page: examples of each cluster of the coarsest level, or of the list as it is.

    Raises ValueError where the images cannot be found.
    """
    clusters = selection.chosen.clusters
    groups = np.zeros(len(selection.rows), int) if clusters is None else clusters[:, -1]
    names, sizes = np.unique(groups, return_counts=True)
    order = np.argsort(-sizes, kind="stable")[:CLUSTERS]
    shown = [np.flatnonzero(groups == names[at]) for at in order]
    if clusters is None:
        shown = [shown[0][start : start + EACH] for start in range(0, min(len(shown[0]), 12 * EACH), EACH)]
    rows = tuple(
        tuple(_cells(pool, selection, _spread(members), len(members) if clusters is not None else 0))
        for members in shown
    )
    facts = [("chosen", f"{len(selection.rows):,}"), ("pool", f"{len(pool):,}")]
    for name, found in (("classes before", selection.before), ("after", selection.after)):
        if found is not None:
            facts.append((name, f"{found[0]:.2f} of {found[1]}"))
    caption = (
        f"{count(len(names), 'cluster')} of the coarsest level in the list"
        + f", {len(order)} of which are shown" * (len(order) < len(names))
        + ": up to eight images of each, with the number that the list has of it."
        if clusters is not None
        else "The first images of the list, in its order."
    )
    section = html.Section("What was chosen", caption, [Grid((), rows)])
    text = html.page(
        title=f"{count(len(selection.rows), 'image')} of {Path(pool.source).name}",
        verdicts=(),
        facts=facts,
        sections=[section],
        notes=[*selection.notes, *notes_on(pool, selection)],
    )
    return html.write(out, text)


def _spread(members: np.ndarray) -> np.ndarray:
    return members[np.unique(np.linspace(0, len(members) - 1, min(EACH, len(members))).round().astype(int))]


def _cells(pool: Pool, selection: Selection, members: np.ndarray, size: int) -> list[Cell]:
    cells = []
    for place, at in enumerate(members):
        row = int(selection.rows[at])
        picture, label = _picture(pool, row), None if pool.labels is None else pool.labels[row].as_py()
        text = "; ".join(label) if isinstance(label, list) else label or ""
        text = f"{size} of this cluster" + f": {text}" * bool(text) if size and not place else text
        cells.append(Cell(picture, text, path=pool.paths[row].as_py()))
    return cells


def _picture(pool: Pool, row: int):
    if pool.images is not None:
        return thumbnail(pool.images, row, SIDE)
    if pool.folder is None:
        raise ValueError(f"--page: the images of {pool.source} are not where it says: leave the page out")
    file = os.path.join(pool.folder, pool.paths[row].as_py())
    return thumbnail(collection.open_images(file), 0, SIDE)
