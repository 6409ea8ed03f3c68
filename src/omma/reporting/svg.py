"""Building blocks of charts: text, colours that the page can set, ticks, and the finished markup."""

import math
import re
from collections.abc import Sequence
from html import escape

WIDTH = 480  # of the view box, near its width on the page, so that text keeps its size
FONT = 12
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
COLOURS = ("#2f6fb5", "#d2691e", "#2a8f7a", "#8a5bb5", "#b8475a", "#8a7a1f")  # the page's --s1 to --s6


class Svg(str):
    """Finished SVG markup, which a page embeds without escaping."""


def nice_ticks(low: float, high: float, about: int = 5, inside: bool = False) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) that enclose [low, high], or lie inside it."""
    low, high = float(low), float(high)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        reach = abs(low) * 0.1 or 1.0
        low, high = low - reach, high + reach
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = low / step, high / step
    first, last = (math.ceil(first - 1e-9), math.floor(last + 1e-9)) if inside else (
        math.floor(first + 1e-9), math.ceil(last - 1e-9))  # fmt: skip
    return [i * step for i in range(first, last + 1)]


def wide(text: str) -> float:
    """The estimated width of a text, in units of the view box."""
    return 0.58 * FONT * len(text)


def tone(i: int) -> str:
    """The colour of series i: a variable of the page with a fallback."""
    return f"var(--s{i % len(COLOURS) + 1},{COLOURS[i % len(COLOURS)]})"


def fill(i: int) -> str:
    return f"fill:{tone(i)}"


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = FONT,
    weight: int = 400,
    anchor: str = "start",
    tone: str = "soft",
    style: str = "",
) -> str:
    fallback = {"soft": "#5b6470", "ink": "#1c2127", "bad": "#b3261e"}[tone]
    style = style or f"fill:var(--{tone},{fallback});font-weight:{weight}"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" style="{style}">'
        f"{quote(words)}</text>"
    )


def quote(words: object) -> str:
    """Text for markup and attributes, without the characters that XML forbids or UTF-8 can't hold."""
    return escape(FORBIDDEN.sub("", str(words)))


def finish(title: str, height: float, parts: Sequence[str], width: float = WIDTH) -> Svg:
    """The whole chart from its elements; one wider than WIDTH takes the page's width."""
    kind = "chart wide" if width > WIDTH else "chart"
    return Svg(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="system-ui,sans-serif" '
        f'aria-label="{quote(title)}">{"".join(parts)}</svg>'
    )
