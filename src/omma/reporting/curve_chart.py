"""The chart of a curve over numbers of labels: a line an adapter, with its intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omma.core import files
from omma.core.errors import line
from omma.evaluation.curve import FLOOR, TITLES, Labels, is_floor
from omma.reporting import charts, html, svg
from omma.reporting.results import percent

HEIGHT = 300  # of the plot, in units of the view box
DASHES = ("", "6 3", "2 3")  # tell lines of one colour apart
SPREAD = 0.6  # of the way to the next amount: over it the lines' intervals stand side by side


@dataclass(frozen=True)
class Line:
    """One adapter: its accuracy with its interval, shares, at each number of labels."""

    name: str
    points: Sequence[tuple[float, float, float]]  # mean, low, high


def draw(content: Mapping[str, Any]) -> svg.Svg:
    """The chart of what `omma evaluate --curve --json` writes, with the linear layer as the floor."""
    results = content["results"]
    labels = list(dict.fromkeys(result["labels"] for result in results))
    amounts = [each.shots or each.share or 1.0 for each in map(Labels.parse, labels)]
    lines = []
    for adapter in TITLES:
        points = {r["labels"]: (r["value"], *r["interval95"]) for r in results if r["protocol"] == adapter}
        if len(points) == len(labels) and (not is_floor(adapter) or adapter == FLOOR):
            lines.append(Line(TITLES[adapter], [points[each] for each in labels]))
    return curve_chart("Accuracy by number of labels", labels, amounts, lines)


def section(file: Path, digest: str, notes: list[str]) -> html.Section | None:
    """What labels are worth, by a run's last `omma evaluate --curve`; None, with a note, if it is no use.

    digest: of the run's weights. notes: get the note.
    """
    if not file.exists():
        return None
    remedy = "`omma evaluate --curve` writes it again"
    try:
        content = files.read_json(file, remedy)
        if content["digest"] != digest:
            notes.append("A curve over numbers of labels is left out: it is of earlier weights of this run.")
            return None
        protocol = content["protocol"]
        caption = " ".join([*content["answer"], f"{protocol[:1].upper()}{protocol[1:]}."])
        return html.Section("What labels are worth", caption, [draw(content)])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        notes.append(f"{file.name} is damaged ({line(error)}): {remedy}")
        return None


def curve_chart(
    title: str, labels: Sequence[str], amounts: Sequence[float], lines: Sequence[Line]
) -> svg.Svg:
    """Accuracies over amounts of labels, on a logarithmic axis, with 95 % intervals as bars.

    labels: how each amount is written. The names of the lines stand at their ends, the best one on top.
    """
    parts = [svg.text(0, 16, title, size=svg.FONT + 2, weight=600, tone="ink")]
    top, bottom = 34.0, 34.0 + HEIGHT
    right = svg.WIDTH - 14 - max(svg.wide(line.name) for line in lines)
    edges = [edge for line in lines for _, low, high in line.points for edge in (low, high)]
    ticks = svg.nice_ticks(max(min(edges), 0.0), min(max(edges), 1.0), about=6)
    left = 14 + max(svg.wide(_tick(value)) for value in ticks)
    places = _places(amounts)
    apart = SPREAD * min([*np.diff(places), 0.3]) / len(lines)  # between neighbouring lines
    inset = apart * len(lines) / 2
    across = (right - left) / (1 + 2 * inset)
    xs = [left + across * (inset + place) for place in places]

    def down(value: float) -> float:
        return bottom - (bottom - top) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    for value in ticks:
        at = down(value)
        parts.append(f'<path d="M{left:.1f} {at:.1f}H{right:.1f}" style="stroke:var(--line,#ddd)"/>')
        parts.append(svg.text(left - 6, at + 4, _tick(value), anchor="end"))
    for x, words in zip(xs, labels, strict=True):
        parts.append(svg.text(x, bottom + 17, words, anchor="middle"))
    unit = "share of labels" if labels[0].endswith("%") else "labels a class"
    parts.append(svg.text((left + right) / 2, bottom + 34, unit, anchor="middle"))
    for k, one in enumerate(lines):
        shift = across * apart * (k - (len(lines) - 1) / 2)
        parts += _line(one, k, [x + shift for x in xs], down, labels)
    names = [(down(line.points[-1][0]), k, line.name) for k, line in enumerate(lines)]
    for at, k, name in charts.spread(names, top, bottom):
        parts.append(svg.text(right + 8, at + 4, name, style=f"{svg.fill(k)};font-weight:600"))
    return svg.finish(title, bottom + 42, parts)


def _places(amounts: Sequence[float]) -> list[float]:
    """Where amounts stand on a logarithmic axis, from 0 to 1."""
    logs = np.log(np.asarray(amounts, np.float64))
    return ((logs - logs[0]) / max(logs[-1] - logs[0], 1e-9)).tolist() if len(logs) > 1 else [0.5]


def _line(
    line: Line, k: int, xs: Sequence[float], down: Callable[[float], float], labels: Sequence[str]
) -> list[str]:
    """The line of adapter number k, its intervals, and a tooltip for each point."""
    dash = DASHES[k // len(svg.COLOURS) % len(DASHES)]
    route = " ".join(f"{x:.1f},{down(mean):.1f}" for x, (mean, _, _) in zip(xs, line.points, strict=True))
    style = f"fill:none;stroke:{svg.tone(k)};stroke-width:1.8;stroke-linejoin:round"
    parts = [f'<polyline points="{route}" style="{style}" stroke-dasharray="{dash or "none"}"/>']
    for x, (mean, low, high), words in zip(xs, line.points, labels, strict=True):
        bottom, top = f"{down(low):.1f}", f"{down(high):.1f}"
        bar = f"M{x:.1f} {bottom}V{top}M{x - 2.5:.1f} {bottom}h5M{x - 2.5:.1f} {top}h5"
        hint = f"{line.name}, {words}: {percent(mean)} ({100 * low:.1f} to {100 * high:.1f})"
        parts.append(
            f'<g><title>{svg.quote(hint)}</title><path d="{bar}" style="stroke:{svg.tone(k)}"/>'
            f'<circle cx="{x:.1f}" cy="{down(mean):.1f}" r="2.6" style="{svg.fill(k)}"/></g>'
        )
    return parts


def _tick(share: float) -> str:
    return f"{100 * share:g} %"
