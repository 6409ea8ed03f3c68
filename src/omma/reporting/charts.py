"""Curves and results with intervals as plain SVG that takes its colours from the page around it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omma.reporting import svg
from omma.reporting.results import Result, figure, percent

POINTS = 600  # most points drawn of one curve
MARKS = 60  # most points of one curve that answer to the pointer


@dataclass(frozen=True)
class Series:
    """One curve: `y` over `x`, of one length. What isn't finite is left out, and the chart says so."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(
                f"series {self.name!r}: {len(self.x)} x for {len(self.y)} y; give as many of each"
            )


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str = "step",
    y_label: str = "",
    *,
    log_y: bool = False,
    smooth: bool = False,
    height: int = 270,
) -> svg.Svg:
    """Curves with ticks, a legend where there are two or more, and the last value at each curve's end.

    `log_y`: logarithmic y, values at or below 0 are left out; `smooth`: each curve faint, its moving mean
    over 1/25 of it (centred) strong, and the end value is the mean's. Long curves are thinned to the extremes
    of each stretch, so that no spike is lost.
    """
    kept, dropped, dropped_x = [], 0, []
    for one in series:
        x, y = np.asarray(one.x, dtype=np.float64), np.asarray(one.y, dtype=np.float64)
        placed = np.isfinite(x)
        good = placed & np.isfinite(y) & ((y > 0) | (not log_y))
        dropped += int((~good).sum())
        dropped_x.append(x[placed & ~good])
        order = np.argsort(x[good], kind="stable")
        kept.append((x[good][order], y[good][order]))
    seen = [pair for pair in kept if len(pair[0])]

    parts = [svg.text(0, 16, title, size=svg.FONT + 2, weight=600, tone="ink")]
    top = 34
    if len(series) > 1:
        legend, rows = _legend([s.name for s in series], top)
        parts.append(legend)
        top += 18 * rows
    said = ", ".join(filter(None, (y_label, "strong line: moving mean" if smooth else "")))
    if said:
        parts.append(svg.text(0, top, said))
        top += 8
    top += 8
    foot = 40 if not dropped else 56
    bottom = height + (top - 42) - foot + 16
    full = bottom + foot
    if dropped:
        note = f"{dropped} value{'s' * (dropped > 1)} left out: not finite" + (
            ", or not above 0" if log_y else ""
        )
        parts.append(svg.text(0, full - 4, note, tone="bad"))
    if not seen:
        parts.append(svg.text(svg.WIDTH / 2, (top + bottom) / 2, "nothing measured yet", anchor="middle"))
        return svg.finish(title, full, parts)

    xs, ys = (np.concatenate(column) for column in zip(*seen))
    y_ticks = svg.log_ticks(ys.min(), ys.max()) if log_y else svg.nice_ticks(ys.min(), ys.max())
    y_text = [figure(v) for v in y_ticks]
    low, high = min(y_ticks[0], ys.min()), max(y_ticks[-1], ys.max())
    left = 8 + max(svg.wide(t) for t in y_text)
    ends = [_moving_mean(y)[-1] if smooth and len(y) else (y[-1] if len(y) else math.nan) for _, y in kept]
    right = svg.WIDTH - 10 - max(svg.wide(figure(v)) for v in ends if math.isfinite(v))
    lost = np.unique(np.concatenate(dropped_x))
    x_low, x_high = (f(np.concatenate([xs, lost])) for f in (np.min, np.max))

    def across(x):
        return left + (right - left) * ((x - x_low) / (x_high - x_low) if x_high > x_low else x * 0 + 0.5)

    def down(y):
        y, a, b = (np.log(y), math.log(low), math.log(high)) if log_y else (y, low, high)
        return bottom - (bottom - top) * (y - a) / (b - a)

    for value, text in zip(y_ticks, y_text):
        at = down(value)
        parts.append(f'<path d="M{left:.1f} {at:.1f}H{right:.1f}" style="stroke:var(--line,#ddd)"/>')
        parts.append(svg.text(left - 6, at + 4, text, anchor="end"))
    for value in svg.nice_ticks(x_low, x_high, about=5, inside=True) if x_high > x_low else [x_low]:
        parts.append(svg.text(across(value), bottom + 17, figure(float(value)), anchor="middle"))
    parts.append(svg.text((left + right) / 2, bottom + 34, x_label, anchor="middle"))
    parts.append(f'<path d="M{left:.1f} {bottom:.1f}H{right:.1f}" style="stroke:var(--axis,#999)"/>')
    if len(lost):
        marks = "".join(f"M{v} {bottom:.1f}v-6" for v in np.unique(across(lost).round()))
        parts.append(f'<path d="{marks}" style="stroke:var(--bad,#b3261e);stroke-width:1.5"/>')

    labels = []
    for i, (x, y) in enumerate(kept):
        if not len(x):
            continue
        strong = _moving_mean(y) if smooth else y
        if smooth:
            parts.append(_curve(*_thin(x, y), across, down, i, "stroke-width:1;opacity:.28"))
        parts.append(_curve(*_thin(x, strong), across, down, i, "stroke-width:1.8"))
        if len(x) == 1:
            parts.append(
                f'<circle cx="{across(x[0]):.1f}" cy="{down(y[0]):.1f}" r="3" style="{svg.fill(i)}"/>'
            )
        for j in np.unique(np.linspace(0, len(x) - 1, MARKS).round().astype(int)):
            hint = f"{series[i].name}: {figure(float(strong[j]))} at {x_label} {figure(float(x[j]))}"
            parts.append(
                f'<circle class="mark" cx="{across(x[j]):.1f}" cy="{down(strong[j]):.1f}" r="5" '
                f'style="{svg.fill(i)}" opacity="0"><title>{svg.quote(hint)}</title></circle>'
            )
        labels.append((float(down(strong[-1])), i, figure(strong[-1])))
    for at, i, text in _spread(labels, top + 4, bottom):
        parts.append(svg.text(right + 6, at + 4, text, style=f"{svg.fill(i)};font-weight:600"))
    return svg.finish(title, full, parts)


def interval_chart(results: Sequence[Result], title: str = "Results with 95 % intervals") -> svg.Svg:
    """One bar a result, grouped by protocol, with its interval. All metrics share one axis, from 0."""
    parts = [svg.text(0, 16, title, size=svg.FONT + 2, weight=600, tone="ink")]
    sound = [r for r in results if math.isfinite(r.value)]
    if not sound:
        return svg.finish(
            title, 70, [*parts, svg.text(svg.WIDTH / 2, 50, "nothing measured yet", anchor="middle")]
        )
    left = 10 + max(svg.wide(r.subject_name) for r in sound)
    right = svg.WIDTH - 12 - max(svg.wide(r.value_text) for r in sound)
    edges = [v for r in sound for v in (r.value, r.low, r.high) if v is not None and math.isfinite(v)]
    ticks = svg.nice_ticks(min(0.0, *edges), max(0.0, *edges), about=4)
    low, high = ticks[0], ticks[-1]

    def across(x: float) -> float:
        return left + (right - left) * (x - low) / (high - low)

    bars, at = [], 34
    for protocol in dict.fromkeys(r.protocol_name for r in sound):
        bars.append(svg.text(0, at + 8, protocol, weight=600))
        at += 16
        for r in (r for r in sound if r.protocol_name == protocol):
            tone = "var(--s1,#2f6fb5)" if r.subject == "trained" else "var(--floor,#9aa3ad)"
            a, b = sorted((across(0.0), across(r.value)))
            hint = f"{r.subject_name}, {r.protocol_name}: {r.value_text}" + (
                f" ({r.interval_text})" if r.interval_text else ""
            )
            bars.append(
                f'<g><title>{svg.quote(hint)}</title><rect x="{a:.1f}" y="{at + 4}" width="{b - a:.1f}" '
                f'height="14" rx="2" style="fill:{tone}"/>'
            )
            if r.low is not None and r.high is not None and math.isfinite(r.low + r.high):
                p, q = across(r.low), across(r.high)
                bars.append(
                    f'<path d="M{p:.1f} {at + 11}H{q:.1f}M{p:.1f} {at + 7}v8M{q:.1f} {at + 7}v8" '
                    f'style="stroke:var(--ink,#222);stroke-width:1.3;fill:none"/>'
                )
            bars.append("</g>")
            bars.append(svg.text(left - 8, at + 15, r.subject_name, anchor="end"))
            end = max(across(v) for v in (r.value, r.high) if v is not None and math.isfinite(v))
            weight = 600 if r.subject == "trained" else 400
            bars.append(svg.text(end + 6, at + 15, r.value_text, weight=weight, tone="ink"))
            at += 22
        at += 8
    write = percent if all(r.is_share for r in sound) else figure
    for value in ticks:
        parts.append(f'<path d="M{across(value):.1f} 34V{at}" style="stroke:var(--line,#ddd)"/>')
        parts.append(svg.text(across(value), at + 15, write(value).replace(".0 ", " "), anchor="middle"))
    return svg.finish(title, at + 22, [*parts, *bars])


def _moving_mean(y: np.ndarray) -> np.ndarray:
    """The centred mean over 1/25 of the curve; the window shrinks at both ends."""
    half = len(y) // 50
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    reach = np.minimum(np.minimum(at, len(y) - 1 - at), half)
    if half:  # the last value is to be a mean too
        reach = np.where(at + half >= len(y), half, reach)
    first, last = np.maximum(at - reach, 0), np.minimum(at + reach, len(y) - 1)
    return (total[last + 1] - total[first]) / (last + 1 - first)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about POINTS points: the lowest and the highest of each stretch, and both ends."""
    if len(x) <= POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), POINTS // 2)
    keep = {0, len(x) - 1, *(int(p[f(y[p])]) for p in parts for f in (np.argmin, np.argmax))}
    index = np.array(sorted(keep))
    return x[index], y[index]


def _curve(x, y, across, down, i: int, style: str) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across(x), down(y)))
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


def _spread(labels: list[tuple[float, int, str]], top: float, bottom: float) -> list[tuple[float, int, str]]:
    """Labels (y, series, text) moved apart to a line's height, inside [top, bottom] while they fit."""
    gap, placed = svg.FONT + 2, []
    for at, i, text in sorted(labels):
        placed.append((max(at, placed[-1][0] + gap) if placed else max(at, top), i, text))
    limit = max(bottom, top + gap * (len(placed) - 1))
    for k in range(len(placed) - 1, -1, -1):
        placed[k] = (min(placed[k][0], limit), *placed[k][1:])
        limit = placed[k][0] - gap
    return placed
