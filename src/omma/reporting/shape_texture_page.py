"""The page of the cue-conflict test: the shares beside their floors, each class, and examples."""

from pathlib import Path

import numpy as np

from omma.core.protocols import Images
from omma.inspection.cue_conflict import read
from omma.inspection.shape_texture import PUBLISHED, SOURCE, ShapeTexture
from omma.reporting import html, thumbnails
from omma.reporting.html import Section, Table, Verdict
from omma.reporting.pictures import SMALLEST, Cell, Grid

EXAMPLES = 2 * html.WIDEST


def write_page(path: Path, found: ShapeTexture, images: Images) -> Path:
    """Write the page, atomically; images: the pictures that were decided."""
    heads, rows = found.table()
    first = found.decisions[0]
    published = ", ".join(f"{name} {share:.1%}" for name, share in PUBLISHED.items())
    caption = (
        "Of the pictures decided for the class of their shape or that of their texture, the share for the "
        "shape; `either` is the share of all pictures so decided: where it is near chance, the shares mean "
        f"little. Published ({SOURCE}): {published}."
    )
    class_heads, class_rows = found.classes_table()
    text = html.page(
        title=f"{found.model}: shape or texture",
        verdicts=[Verdict("Cue conflict", found.verdict())],
        facts=[("Model", found.model), ("Pictures", f"{first.n:,}"), ("Classes", f"{first.options:,}")],
        sections=[
            Section("Shape share", caption, [Table(tuple(heads), rows)]),
            Section(
                "By the class of the shape",
                "What the first row of the table above is made of.",
                [Table(tuple(class_heads), class_rows)],
            ),
            Section("Pictures", "Below each: its shape / its texture.", [_examples(images, found.data)]),
        ],
        notes=[*found.notes, *(f"left out: {name}: {reason}" for name, reason in found.bad[:20])],
    )
    return html.write(path, text)


def _examples(images: Images, source: str) -> Grid:
    """Pictures evenly spaced in the collection."""
    conflicts = read(images, source)
    rows = np.unique(np.linspace(0, len(conflicts) - 1, min(EXAMPLES, len(conflicts))).astype(int))
    cells = [
        Cell(
            thumbnails.thumbnail(conflicts.images, row, SMALLEST),
            f"{conflicts.classes[conflicts.shapes[row]]} / {conflicts.classes[conflicts.textures[row]]}",
        )
        for row in rows.tolist()
    ]
    lines = [tuple(cells[i : i + html.WIDEST]) for i in range(0, len(cells), html.WIDEST)]
    return Grid(("",) * html.WIDEST, tuple(lines))
