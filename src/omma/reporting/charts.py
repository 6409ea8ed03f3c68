"""Line charts and bar charts with intervals as plain SVG, in the colours of the page around them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from omma.reporting import svg
from omma.reporting.results import ReportedScore, figure, percent

POINTS = 600  # drawn of one curve, at most
MARKS = 60  # of one curve with a tooltip, at most
HEIGHT = 270  # of a line chart, in units of the view box


@dataclass(frozen=True)
class Series:
    """One curve: `y` over `x`, equally long. Values that are not finite are left out with a note."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r}: {len(self.x)} x for {len(self.y)} y; give equally many")


class _Curve(NamedTuple):
    """One series as it is drawn: finite, ordered by x, possibly empty."""

    name: str
    x: np.ndarray
    y: np.ndarray
    strong: np.ndarray  # the strong line: y or its moving mean


class _Frame(NamedTuple):
    """The plotting area in units of the view box, and the values at its edges."""

    left: float
    right: float
    top: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def across(self, x):
        wide = self.x_high > self.x_low
        return self.left + (self.right - self.left) * (
            (x - self.x_low) / (self.x_high - self.x_low) if wide else x * 0 + 0.5
        )

    def down(self, y):
        return self.bottom - (self.bottom - self.top) * (y - self.y_low) / (self.y_high - self.y_low)


def line_chart(title: str, series: Sequence[Series], *, smooth: bool = False) -> svg.Svg:
    """Curves over steps, with ticks, a legend for two or more, and each curve's last value at its end.

    smooth: draw each curve faintly and its centred moving mean over 1/25 of its length strongly; the value at
    the end is the mean's. Long curves are thinned to the extremes of each stretch, so that no spike is lost.
    """
    curves, dropped = _curves(series, smooth)
    n_dropped = sum(len(s.x) for s in series) - sum(len(curve.x) for curve in curves)
    parts, top = _heading(title, series, smooth)
    foot = 40 if not n_dropped else 56
    bottom = HEIGHT + (top - 42) - foot + 16
    full = bottom + foot
    if n_dropped:
        note = f"{n_dropped} value{'s' * (n_dropped > 1)} left out: not finite"
        parts.append(svg.text(0, full - 4, note, tone="bad"))
    drawn = [(i, curve) for i, curve in enumerate(curves) if len(curve.x)]
    if not drawn:
        parts.append(svg.text(svg.WIDTH / 2, (top + bottom) / 2, "nothing measured yet", anchor="middle"))
        return svg.finish(title, full, parts)
    frame, axes = _axes([curve for _, curve in drawn], dropped, top, bottom)
    parts += axes
    for i, curve in drawn:
        parts += _curve(curve, frame, i, smooth)
    ends = [(float(frame.down(curve.strong[-1])), i, figure(curve.strong[-1])) for i, curve in drawn]
    for at, i, text in spread(ends, top + 4, bottom):
        parts.append(svg.text(frame.right + 6, at + 4, text, style=f"{svg.fill(i)};font-weight:600"))
    return svg.finish(title, full, parts)


def _curves(series: Sequence[Series], smooth: bool) -> tuple[list[_Curve], np.ndarray]:
    """The series without values that cannot be drawn, and the finite x of those values."""
    curves, dropped = [], [np.zeros(0)]
    for one in series:
        x, y = np.asarray(one.x, dtype=np.float64), np.asarray(one.y, dtype=np.float64)
        placed = np.isfinite(x)
        good = placed & np.isfinite(y)
        dropped.append(x[placed & ~good])
        order = np.argsort(x[good], kind="stable")
        x, y = x[good][order], y[good][order]
        curves.append(_Curve(one.name, x, y, _moving_mean(y) if smooth and len(y) else y))
    return curves, np.unique(np.concatenate(dropped))


def _heading(title: str, series: Sequence[Series], smooth: bool) -> tuple[list[str], int]:
    """Title, legend and a note on the strong line; returns also where the plot begins."""
    parts = [svg.text(0, 16, title, size=svg.FONT + 2, weight=600, tone="ink")]
    top = 34
    if len(series) > 1:
        legend, rows = _legend([s.name for s in series], top)
        parts.append(legend)
        top += 18 * rows
    if smooth:
        parts.append(svg.text(0, top, "strong line: moving mean"))
        top += 8
    return parts, top + 8


def _axes(
    curves: Sequence[_Curve], dropped: np.ndarray, top: float, bottom: float
) -> tuple[_Frame, list[str]]:
    """The frame that holds all curves, and its grid, ticks and labels; red ticks mark dropped values."""
    xs, ys = np.concatenate([c.x for c in curves]), np.concatenate([c.y for c in curves])
    y_ticks = svg.nice_ticks(ys.min(), ys.max())
    y_text = [figure(v) for v in y_ticks]
    ends = [float(c.strong[-1]) for c in curves]
    all_x = np.concatenate([xs, dropped])
    frame = _Frame(
        left=8 + max(svg.wide(t) for t in y_text),
        right=svg.WIDTH - 10 - max(svg.wide(figure(v)) for v in ends if math.isfinite(v)),
        top=top,
        bottom=bottom,
        x_low=np.min(all_x),
        x_high=np.max(all_x),
        y_low=min(y_ticks[0], ys.min()),
        y_high=max(y_ticks[-1], ys.max()),
    )
    left, right = frame.left, frame.right
    parts = []
    for value, text in zip(y_ticks, y_text):
        at = frame.down(value)
        parts.append(f'<path d="M{left:.1f} {at:.1f}H{right:.1f}" style="stroke:var(--line,#ddd)"/>')
        parts.append(svg.text(left - 6, at + 4, text, anchor="end"))
    several = frame.x_high > frame.x_low
    for value in svg.nice_ticks(frame.x_low, frame.x_high, inside=True) if several else [frame.x_low]:
        parts.append(svg.text(frame.across(value), bottom + 17, figure(float(value)), anchor="middle"))
    parts.append(svg.text((left + right) / 2, bottom + 34, "step", anchor="middle"))
    parts.append(f'<path d="M{left:.1f} {bottom:.1f}H{right:.1f}" style="stroke:var(--axis,#999)"/>')
    if len(dropped):
        marks = "".join(f"M{v} {bottom:.1f}v-6" for v in np.unique(frame.across(dropped).round()))
        parts.append(f'<path d="{marks}" style="stroke:var(--bad,#b3261e);stroke-width:1.5"/>')
    return frame, parts


def _curve(curve: _Curve, frame: _Frame, i: int, smooth: bool) -> list[str]:
    """The lines of curve number i, with tooltips."""
    x, strong = curve.x, curve.strong
    parts = []
    if smooth:
        parts.append(_polyline(*_thin(x, curve.y), frame, i, "stroke-width:1;opacity:.28"))
    parts.append(_polyline(*_thin(x, strong), frame, i, "stroke-width:1.8"))
    if len(x) == 1:
        cx, cy = frame.across(x[0]), frame.down(curve.y[0])
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3" style="{svg.fill(i)}"/>')
    for j in np.unique(np.linspace(0, len(x) - 1, MARKS).round().astype(int)):
        hint = f"{curve.name}: {figure(float(strong[j]))} at step {figure(float(x[j]))}"
        parts.append(
            f'<circle class="mark" cx="{frame.across(x[j]):.1f}" cy="{frame.down(strong[j]):.1f}" r="5" '
            f'style="{svg.fill(i)}" opacity="0"><title>{svg.quote(hint)}</title></circle>'
        )
    return parts


def interval_chart(results: Sequence[ReportedScore], title: str = "Results with 95 % intervals") -> svg.Svg:
    """One bar a result with its interval, grouped by protocol. All metrics share one axis that includes 0."""
    parts = [svg.text(0, 16, title, size=svg.FONT + 2, weight=600, tone="ink")]
    finite = [r for r in results if math.isfinite(r.value)]
    if not finite:
        return svg.finish(
            title, 70, [*parts, svg.text(svg.WIDTH / 2, 50, "nothing measured yet", anchor="middle")]
        )
    left = 10 + max(svg.wide(r.subject_name) for r in finite)
    right = svg.WIDTH - 12 - max(svg.wide(r.value_text) for r in finite)
    edges = [v for r in finite for v in (r.value, r.low, r.high) if v is not None and math.isfinite(v)]
    ticks = svg.nice_ticks(min(0.0, *edges), max(0.0, *edges), about=4)
    low, high = ticks[0], ticks[-1]

    def across(x: float) -> float:
        return left + (right - left) * (x - low) / (high - low)

    bars, at = [], 34
    for protocol in dict.fromkeys(r.protocol_name for r in finite):
        bars.append(svg.text(0, at + 8, protocol, weight=600))
        at += 16
        for r in (r for r in finite if r.protocol_name == protocol):
            bars += _bar(r, across, left, at)
            at += 22
        at += 8
    write = percent if all(r.is_share for r in finite) else figure
    for value in ticks:
        parts.append(f'<path d="M{across(value):.1f} 34V{at}" style="stroke:var(--line,#ddd)"/>')
        parts.append(svg.text(across(value), at + 15, write(value).replace(".0 ", " "), anchor="middle"))
    return svg.finish(title, at + 22, [*parts, *bars])


def _bar(r: ReportedScore, across: Callable[[float], float], left: float, at: int) -> list[str]:
    """The bar of one result at height `at`: its subject, interval, value and tooltip."""
    tone = "var(--s1,#2f6fb5)" if r.subject == "trained" else "var(--floor,#9aa3ad)"
    a, b = sorted((across(0.0), across(r.value)))
    hint = f"{r.subject_name}, {r.protocol_name}: {r.value_text}" + (
        f" ({r.interval_text})" if r.interval_text else ""
    )
    parts = [
        f'<g><title>{svg.quote(hint)}</title><rect x="{a:.1f}" y="{at + 4}" width="{b - a:.1f}" '
        f'height="14" rx="2" style="fill:{tone}"/>'
    ]
    if r.low is not None and r.high is not None and math.isfinite(r.low + r.high):
        p, q = across(r.low), across(r.high)
        parts.append(
            f'<path d="M{p:.1f} {at + 11}H{q:.1f}M{p:.1f} {at + 7}v8M{q:.1f} {at + 7}v8" '
            f'style="stroke:var(--ink,#222);stroke-width:1.3;fill:none"/>'
        )
    parts.append("</g>")
    parts.append(svg.text(left - 8, at + 15, r.subject_name, anchor="end"))
    end = max(across(v) for v in (r.value, r.high) if v is not None and math.isfinite(v))
    weight = 600 if r.subject == "trained" else 400
    return [*parts, svg.text(end + 6, at + 15, r.value_text, weight=weight, tone="ink")]


def _moving_mean(y: np.ndarray) -> np.ndarray:
    """The centred mean over 1/25 of the curve; the window shrinks at both ends."""
    half = len(y) // 50
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    reach = np.minimum(np.minimum(at, len(y) - 1 - at), half)
    if half:  # the last value is a mean as well
        reach = np.where(at + half >= len(y), half, reach)
    first, last = np.maximum(at - reach, 0), np.minimum(at + reach, len(y) - 1)
    return (total[last + 1] - total[first]) / (last + 1 - first)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about POINTS points: the lowest and the highest of each stretch, and both ends."""
    if len(x) <= POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(x)), POINTS // 2)
    keep = {0, len(x) - 1, *(int(s[f(y[s])]) for s in stretches for f in (np.argmin, np.argmax))}
    index = np.array(sorted(keep))
    return x[index], y[index]


def _polyline(x: np.ndarray, y: np.ndarray, frame: _Frame, i: int, style: str) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(frame.across(x), frame.down(y)))
    return (
        f'<polyline points="{points}" style="fill:none;stroke:{svg.tone(i)};stroke-linejoin:round;{style}"/>'
    )


def _legend(names: Sequence[str], top: float) -> tuple[str, int]:
    parts, x, row = [], 0.0, 0
    for i, name in enumerate(names):
        span = 24 + svg.wide(name)
        if x and x + span > svg.WIDTH:
            x, row = 0.0, row + 1
        y = top + 18 * row
        parts.append(f'<path d="M{x:.1f} {y - 4}h14" style="stroke:{svg.tone(i)};stroke-width:2.5"/>')
        parts.append(svg.text(x + 18, y, name))
        x += span + 8
    return "".join(parts), row + 1


def spread(labels: list[tuple[float, int, str]], top: float, bottom: float) -> list[tuple[float, int, str]]:
    """Labels (y, series, text) spaced a line apart, inside [top, bottom] if they fit."""
    gap, placed = svg.FONT + 2, []
    for at, i, text in sorted(labels):
        placed.append((max(at, placed[-1][0] + gap) if placed else max(at, top), i, text))
    limit = max(bottom, top + gap * (len(placed) - 1))
    for k in range(len(placed) - 1, -1, -1):
        placed[k] = (min(placed[k][0], limit), *placed[k][1:])
        limit = placed[k][0] - gap
    return placed
