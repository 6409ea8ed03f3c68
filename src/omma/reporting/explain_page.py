"""The page of `omma explain`: what each kind of explanation has found, drawn over the images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from omma.inspection.kinds import Curves, Explanation, Figures, Heat, Picture, Rows, Subject
from omma.reporting import html
from omma.reporting.charts import Series, line_chart
from omma.reporting.html import Section, Shown, Table, Verdict
from omma.reporting.pictures import Cell, Grid, overlay, tile, with_scale


def write_page(
    path: Path,
    title: str,
    explanations: Sequence[Explanation],
    images: Float[np.ndarray, "n h w c"],
    *,
    labels: Sequence[str] = (),
    paths: Sequence[str] = (),
    facts: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write the page, atomically. images: in [0, 1], as the network sees them; labels: stand below them."""
    text = html.page(
        title=title,
        verdicts=[
            Verdict(j.of, j.sentence, {True: "good", False: "bad", None: None}[j.good], j.reason)
            for each in explanations
            for j in each.judged
        ],
        facts=facts,
        sections=sections(explanations, images, labels=labels, paths=paths),
        notes=[*notes, *(note for each in explanations for note in each.notes)],
    )
    return html.write(path, text)


def sections(
    explanations: Sequence[Explanation],
    images: Float[np.ndarray, "n h w c"],
    *,
    labels: Sequence[str] = (),
    paths: Sequence[str] = (),
) -> list[Section]:
    """A section of a page for each explanation that shows anything; images, labels: as for `write_page`."""
    bases = [
        Cell(tile(image, _unit(image)), labels[i] if labels else "", path=paths[i] if paths else "")
        for i, image in enumerate(images)
    ]
    found = [each for each in explanations if each.shows]
    return [Section(e.title, e.caption, [_drawn(s, bases) for s in e.shows]) for e in found]


def facts_of(name: str, subject: Subject) -> list[tuple[str, str]]:
    """The few that describe what is explained."""
    height, width = subject.size
    rows, columns = subject.grid
    side = round(height / subject.model.preprocess.crop_share)
    return [
        ("Model", f"{name} ({subject.encoder.name})"),
        ("Images", f"{len(subject.pixels)}"),
        ("What the network sees", f"{height} x {width} px: shorter side {side} px, centre cut"),
        ("Patches", f"{rows} x {columns}"),
    ]


def _drawn(shows: Rows | Figures | Curves, bases: Sequence[Cell]) -> Shown:
    if isinstance(shows, Figures):
        return Table(shows.heads, shows.rows)
    if isinstance(shows, Curves):
        return line_chart(shows.title, [Series(*line) for line in shows.lines])
    over = any(isinstance(cell, Heat) for row in shows.rows for cell in row)
    rows = [[_cell(cell, bases) for cell in row] for row in shows.rows]
    if over:  # the image itself comes first
        first = [next((c.image for c in row if isinstance(c, Heat)), None) for row in shows.rows]
        rows = [[None if i is None else bases[i], *row] for i, row in zip(first, rows)]
    return Grid((("image",) if over else ()) + shows.heads, tuple(map(tuple, rows)))


def _cell(shown: Heat | Picture | None, bases: Sequence[Cell]) -> Cell | None:
    if shown is None:
        return None
    if isinstance(shown, Picture):
        return Cell(tile(shown.values, _unit(shown.values)), shown.text, shown.mark, shown.path)
    values = np.nan_to_num(shown.values, posinf=0.0, neginf=0.0).clip(0)
    top = float(values.max()) if shown.top is None else shown.top
    scale = f"0 to {top:.2g} {shown.unit}".rstrip() if top > 0 else "0 everywhere"
    text = f"{shown.text}; {scale}" if shown.text else scale
    return Cell(with_scale(overlay(bases[shown.image].image, values, top)), text)


def _unit(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Black and white of a picture in [0, 1]."""
    channels = min(values.shape[-1], 3)
    return np.zeros(channels), np.ones(channels)
