"""The report of a run: one self-contained HTML file, for any screen, in light and dark."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from omma.core import files
from omma.evaluation.verdict import metric_name
from omma.reporting.charts import interval_chart
from omma.reporting.pictures import Cell, Grid
from omma.reporting.results import PROTOCOLS, Level, ReportedEvaluation, ReportedScore
from omma.reporting.style import CSS
from omma.reporting.svg import Svg
from omma.reporting.svg import quote as escape

SIGNS: dict[Level, tuple[str, str]] = {
    "good": ("✓", "Good"),
    "warn": ("!", "Look closer"),
    "bad": ("✕", "Bad"),
}
WIDEST = 9  # columns of pictures side by side on a wide screen
# The page may use its own pictures and styles and load nothing from elsewhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Verdict:
    """A sentence in plain words about `of`; reason: its basis, and a remedy if there is one."""

    of: str
    sentence: str
    level: Level | None = None  # None: neither good nor bad
    reason: str = ""

    def __post_init__(self) -> None:
        if self.level not in (*SIGNS, None):
            raise ValueError(f"level={self.level!r}: must be one of {', '.join(SIGNS)}")


@dataclass(frozen=True)
class Table:
    """Rows of texts under column heads; a pair of texts is a value and small print below it."""

    heads: tuple[str, ...]
    rows: Sequence[Sequence[str | tuple[str, str]]]


@dataclass(frozen=True)
class Folded:
    """A table that is opened by a click on its summary."""

    summary: str
    table: Table


Shown = Grid | Image.Image | Svg | Table | Folded


@dataclass(frozen=True)
class Section:
    """A heading, a caption that says what to look for, and what it shows."""

    title: str
    caption: str
    pictures: Sequence[Shown]


def write(path: Path, text: str) -> Path:
    """Write a report atomically: if this fails, an older report stays as it was."""
    with files.atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
    return path


def page(
    *,
    title: str,
    verdicts: Sequence[Verdict],
    facts: Sequence[tuple[str, str]] = (),
    evaluations: Sequence[ReportedEvaluation] = (),
    sections: Sequence[Section] = (),
    curves: Sequence[Svg] = (),
    config: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> str:
    """The report as the text of an HTML file.

    verdicts: the most important first; facts: the few numbers that describe the run (images, model, time);
    evaluations: the newest first; config: the whole configuration, folded away. All text is escaped.
    """
    body = [f"<header><p class=brand>omma</p><h1>{escape(title)}</h1></header>", *map(_verdict, verdicts)]
    if facts:
        body.append(f"<dl class=facts>{''.join(map(_fact, facts))}</dl>")
    stated = {verdict.sentence for verdict in verdicts}
    body += [_evaluation(each, each.verdict in stated) for each in evaluations]
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


def _verdict(verdict: Verdict) -> str:
    sign, word = SIGNS[verdict.level] if verdict.level else ("–", "Not compared")
    return (
        f'<section class="verdict {verdict.level or ""}"><span class=sign role=img aria-label="{word}">{sign}'
        f"</span><div><p class=of>{escape(verdict.of)}</p><p class=lead>{escape(verdict.sentence)}</p>"
        f"{verdict.reason and f'<p>{escape(verdict.reason)}</p>'}</div></section>"
    )


def _evaluation(evaluation: ReportedEvaluation, stated: bool) -> str:
    """The results on one set of images; stated: their verdict already stands at the top."""
    scores = evaluation.scores
    verdict = "" if stated or not evaluation.verdict else f"<p class=caption>{escape(evaluation.verdict)}</p>"
    notes = f"<ul class=print>{''.join(f'<li>{escape(n)}</li>' for n in evaluation.notes)}</ul>"
    return (
        f"<section><h2>Results on {escape(evaluation.data)}</h2>{verdict}"
        f"<div class=results><div>{_table(scores)}</div>"
        f"<figure>{_svg(interval_chart(scores, 'Beside its floors'))}</figure></div>"
        f"{_small_print(evaluation)}{_further(evaluation)}{notes if evaluation.notes else ''}</section>"
    )


def _further(evaluation: ReportedEvaluation) -> str:
    """The further metrics of the trained network: metrics down, protocols across."""
    scores = {(r.metric, r.protocol): r for r in evaluation.further}
    if not scores:
        return ""
    protocols = list(dict.fromkeys(r.protocol for r in evaluation.further))
    rows = []
    for metric in dict.fromkeys(r.metric for r in evaluation.further):
        found = [scores.get((metric, protocol)) for protocol in protocols]
        values = [("–", "") if r is None else (r.value_text, r.interval_text) for r in found]
        rows.append((metric_name(metric), *values))
    table = Table(("metric", *(PROTOCOLS.get(p, p) for p in protocols)), rows)
    return _picture(Folded(f"{len(rows)} further metrics of the trained network", table))


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


def _small_print(evaluation: ReportedEvaluation) -> str:
    """How the results were measured: what all share once, then what is special to a column or a subject."""
    scores = evaluation.scores
    common = _shared([r for r in scores if r.subject == "trained"] or scores)
    lines = [escape(evaluation.protocol or ", ".join(common))]
    columns = {r.protocol_name: [x for x in scores if x.protocol_name == r.protocol_name] for r in scores}
    subjects = {r.subject_name: [x for x in scores if x.subject == r.subject] for r in scores}
    special = {name: _shared(group, common) for name, group in (columns | subjects).items()}
    for r in scores:
        known = (*common, *special[r.protocol_name], *special[r.subject_name])
        special[f"{r.protocol_name}, {r.subject_name}"] = [c for c in r.conditions if c not in known]
    lines += [f"<b>{escape(k)}</b>: {escape(', '.join(v))}" for k, v in special.items() if v]
    if any(r.interval_text for r in scores):
        lines.append("Below each value: its 95 % interval.")
    return f"<p class=print>{'<br>'.join(filter(None, lines))}</p>"


def _shared(scores: Sequence[ReportedScore], known: Sequence[str] = ()) -> list[str]:
    """The conditions of all these scores that are not known already."""
    first = scores[0].conditions if scores else ()
    return [c for c in first if c not in known and all(c in r.conditions for r in scores)]


def _picture(picture: Shown) -> str:
    if isinstance(picture, Table):
        return _plain_table(picture)
    if isinstance(picture, Folded):
        body = _plain_table(picture.table)
        return f"<details class=folded><summary>{escape(picture.summary)}</summary>{body}</details>"
    if isinstance(picture, Grid):
        return _grid(picture)
    if isinstance(picture, Image.Image):
        return f'<figure><img src="{data_uri(picture)}" alt=""></figure>'
    return f"<figure>{_svg(picture)}</figure>"


def _plain_table(table: Table) -> str:
    def cell(text: str | tuple[str, str]) -> str:
        value, small = (text, "") if isinstance(text, str) else text
        return escape(value) + (f"<small>{escape(small)}</small>" if small else "")

    heads = "".join(f"<th scope=col>{escape(head)}</th>" for head in table.heads[1:])
    rows = "".join(
        f"<tr><th scope=row>{cell(row[0])}</th>{''.join(f'<td>{cell(text)}</td>' for text in row[1:])}</tr>"
        for row in table.rows
    )
    head = f"<thead><tr><td>{escape(table.heads[0])}</td>{heads}</tr></thead>"
    return f"<div class=scroll><table class=scores>{head}<tbody>{rows}</tbody></table></div>"


def _grid(grid: Grid) -> str:
    """The grid as HTML; a narrow one is cut into blocks that stand side by side if there is room."""
    columns = max(map(len, grid.rows), default=1)
    blocks = max(1, min(len(grid.rows), round(WIDEST / columns)))
    height = max(1, -(-len(grid.rows) // blocks))
    cut = (_block(grid, grid.rows[i : i + height], columns) for i in range(0, len(grid.rows), height))
    return f"<div class=scroll>{''.join(cut)}</div>"


def _block(grid: Grid, rows: Sequence[tuple[Cell | None, ...]], columns: int) -> str:
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
    name = f'<span class=name title="{escape(cell.path)}">{escape(PurePath(cell.path).name)}</span>'
    image = f'<img src="{data_uri(cell.image)}" alt="{escape(alt or cell.path)}" loading=lazy>'
    return f'<div class="cell{mark}">{image}{name if cell.path else ""}{text}</div>'
