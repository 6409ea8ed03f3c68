"""The report of a run: one self-contained HTML file, for any screen, in light and dark."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from omma.core import files
from omma.reporting.charts import interval_chart
from omma.reporting.pictures import Cell, Grid
from omma.reporting.results import ReportedScore
from omma.reporting.style import CSS
from omma.reporting.svg import Svg
from omma.reporting.svg import quote as escape

Level = Literal["good", "warn", "bad"]
SIGNS: dict[Level, tuple[str, str]] = {
    "good": ("✓", "Good"),
    "warn": ("!", "Look closer"),
    "bad": ("✕", "Bad"),
}
WIDEST = 9  # columns of pictures side by side on a wide screen
# The page may use its own pictures and styles and load nothing from elsewhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A heading, a caption that says what to look for, and the pictures."""

    title: str
    caption: str
    pictures: Sequence[Grid | Image.Image | Svg]


def write(path: Path, text: str) -> Path:
    """Write a report atomically: if this fails, an older report stays as it was."""
    with files.atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
    return path


def page(
    *,
    title: str,
    verdict: str,
    level: Level,
    reason: str = "",
    facts: Sequence[tuple[str, str]] = (),
    results: Sequence[ReportedScore] = (),
    sections: Sequence[Section] = (),
    curves: Sequence[Svg] = (),
    config: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> str:
    """The report as the text of an HTML file.

    verdict: one sentence in plain words; reason: its basis, and a remedy if there is one; facts: the few
    numbers that describe the run (images, model, time); config: the whole configuration, folded away.
    All text is escaped.
    """
    if level not in SIGNS:
        raise ValueError(f"level={level!r}: must be one of {', '.join(SIGNS)}")
    sign, word = SIGNS[level]
    body = [
        f"<header><p class=brand>omma</p><h1>{escape(title)}</h1></header>",
        f'<section class="verdict {level}"><span class=sign role=img aria-label="{word}">{sign}</span>'
        f"<div><p class=lead>{escape(verdict)}</p>{reason and f'<p>{escape(reason)}</p>'}</div></section>",
    ]
    if facts:
        body.append(f"<dl class=facts>{''.join(map(_fact, facts))}</dl>")
    if results:
        body.append(
            f"<section><h2>Results</h2><div class=results><div>{_table(results)}</div>"
            f"<figure>{_svg(interval_chart(results, 'Beside its floors'))}</figure></div>"
            f"{_small_print(results)}</section>"
        )
    for section in sections:
        pictures = "".join(map(_picture, section.pictures))
        body.append(
            f"<section><h2>{escape(section.title)}</h2><p class=caption>{escape(section.caption)}</p>"
            f"{pictures}</section>"
        )
    if curves:
        figures = "".join(f"<figure>{_svg(curve)}</figure>" for curve in curves)
        body.append(f"<section><h2>Training</h2><div class=curves>{figures}</div></section>")
    if notes:
        body.append(
            f"<section><h2>Notes</h2><ul>{''.join(f'<li>{escape(n)}</li>' for n in notes)}</ul></section>"
        )
    if config:
        rows = "".join(f"<tr><th scope=row>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in config)
        body.append(f"<details><summary>Configuration</summary><table class=config>{rows}</table></details>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def data_uri(picture: Image.Image) -> str:
    """A picture as a data: URI, in PNG, or in JPEG where PNG takes over 12 kB."""
    picture = picture.convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    kind = "png"
    if stream.tell() > 12_000:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=88, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _fact(fact: tuple[str, str]) -> str:
    return f"<div><dt>{escape(fact[0])}</dt><dd>{escape(fact[1])}</dd></div>"


def _svg(chart: Svg) -> str:
    if not isinstance(chart, Svg):
        raise TypeError(f"a curve must come from omma.reporting.charts (Svg), not {type(chart).__name__}")
    return chart


def _table(results: Sequence[ReportedScore]) -> str:
    """Subjects down, protocols across, intervals below the values."""
    columns = list(dict.fromkeys(r.protocol_name for r in results))
    rows = []
    for subject in dict.fromkeys(r.subject for r in results):
        own = {r.protocol_name: r for r in results if r.subject == subject}
        name = next(iter(own.values())).subject_name
        cells = "".join(
            f"<td>{escape(own[c].value_text)}<small>{escape(own[c].interval_text)}</small></td>"
            if c in own
            else "<td>–</td>"
            for c in columns
        )
        style = " class=trained" if subject == "trained" else ""
        rows.append(f"<tr{style}><th scope=row>{escape(name)}</th>{cells}</tr>")
    heads = "".join(f"<th scope=col>{escape(c)}</th>" for c in columns)
    return (
        f"<table class=scores><thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _small_print(results: Sequence[ReportedScore]) -> str:
    """How each column was measured, once if all its subjects were measured the same way."""
    lines = []
    for column in dict.fromkeys(r.protocol_name for r in results):
        details = {r.subject_name: r.detail for r in results if r.protocol_name == column and r.detail}
        if len(set(details.values())) == 1:
            details = {"": next(iter(details.values()))}
        for name, detail in details.items():
            lines.append(f"<b>{escape(column)}</b>{f', {escape(name)}' if name else ''}: {escape(detail)}")
    if any(r.interval_text for r in results):
        lines.append("Below each value: its 95 % interval.")
    return f"<p class=print>{'<br>'.join(lines)}</p>" if lines else ""


def _picture(picture: Grid | Image.Image | Svg) -> str:
    if isinstance(picture, Grid):
        return _grid(picture)
    if isinstance(picture, Image.Image):
        return f'<figure><img src="{data_uri(picture)}" alt=""></figure>'
    return f"<figure>{_svg(picture)}</figure>"


def _grid(grid: Grid) -> str:
    """The grid as HTML; a narrow one is cut into blocks that stand side by side if there is room."""
    columns = max(map(len, grid.rows), default=1)
    blocks = max(1, min(len(grid.rows), WIDEST // columns))
    height = max(1, -(-len(grid.rows) // blocks))
    cut = (_block(grid, grid.rows[i : i + height], columns) for i in range(0, len(grid.rows), height))
    return f"<div class=scroll>{''.join(cut)}</div>"


def _block(grid: Grid, rows: Sequence[tuple[Cell, ...]], columns: int) -> str:
    heads = (
        "".join(f"<span class=head>{escape(h)}</span>" for h in grid.heads[:columns])
        if any(grid.heads)
        else ""
    )
    heads += "<span></span>" * (columns - len(grid.heads)) if heads else ""
    cells = "".join(_cell(cell) for row in rows for cell in (*row, *[None] * (columns - len(row))))
    return f'<div class=grid style="--n:{columns}">{heads}{cells}</div>'


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<span></span>"
    mark = {True: " right", False: " wrong", None: ""}[cell.mark]
    alt = cell.text + {True: " (right)", False: " (wrong)", None: ""}[cell.mark]
    text = f'<span title="{escape(cell.text)}">{escape(cell.text)}</span>' if cell.text else ""
    image = f'<img src="{data_uri(cell.image)}" alt="{escape(alt)}" loading=lazy>'
    return f'<div class="cell{mark}">{image}{text}</div>'
