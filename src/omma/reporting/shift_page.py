"""Domains against each other: heat maps, the section of a report, and the page of `omma shift`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omma.core import files
from omma.core.errors import line
from omma.core.words import count
from omma.reporting import html, svg
from omma.reporting.results import percent

CELL = (96, 46)  # a cell's least width and its height, in units of the view box
FAINT, FULL = 0.04, 0.62  # opacities of 0 and 100 %: text stays legible on either
LONGEST = 18  # characters of a domain's name in the picture


def heat_map(
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    intervals: Sequence[Sequence[Sequence[float]]],
    foot: Sequence[tuple[str, Sequence[float]]] = (),
) -> svg.Svg:
    """Shares as a matrix with their intervals: sources down, targets across, the diagonal framed.

    foot: further rows of shares, without colour.
    """
    short = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in names]
    left = 14 + max(svg.wide(text) for text in (*short, "trained on", *(name for name, _ in foot)))
    wide = max(CELL[0], (svg.WIDTH - left) / len(names), *(svg.wide(name) + 10 for name in short))
    parts = [
        svg.text(0, 16, title, size=svg.FONT + 2, weight=600, tone="ink"),
        svg.text(0, 42, "trained on", size=svg.FONT - 1),
    ]
    top = 50.0
    for j, name in enumerate(short):
        parts.append(svg.text(left + wide * (j + 0.5), 42, f"on {name}", anchor="middle"))
    for i, name in enumerate(short):
        y = top + CELL[1] * i
        parts.append(svg.text(left - 8, y + CELL[1] / 2 + 4, name, anchor="end", tone="ink"))
        for j, (value, (low, high)) in enumerate(zip(values[i], intervals[i])):
            parts += _cell(left + wide * j, y, wide, value, (low, high), i == j, f"{names[i]} on {names[j]}")
    y = top + CELL[1] * len(names)
    for name, shares in foot:
        y += 20
        parts.append(svg.text(left - 8, y, name, anchor="end"))
        parts += [
            svg.text(left + wide * (j + 0.5), y, percent(share), anchor="middle")
            for j, share in enumerate(shares)
        ]
    return svg.finish(title, y + 10, parts, max(svg.WIDTH, left + wide * len(names)))


def _cell(
    x: float, y: float, wide: float, value: float, ends: tuple[float, float], own: bool, name: str
) -> list[str]:
    low, high = ends
    opacity = FAINT + (FULL - FAINT) * value
    frame = ";stroke:var(--ink,#1c2127);stroke-width:1.4" if own else ""
    hint = f"{name}: {percent(value)} ({100 * low:.1f} to {100 * high:.1f})"
    middle = x + wide / 2
    return [
        f'<g><title>{svg.quote(hint)}</title><rect x="{x + 1.5:.1f}" y="{y + 1.5:.1f}" '
        f'width="{wide - 3:.1f}" height="{CELL[1] - 3}" rx="3" '
        f'style="{svg.fill(0)};fill-opacity:{opacity:.3f}{frame}"/></g>',
        svg.text(middle, y + CELL[1] / 2, percent(value), anchor="middle", weight=600, tone="ink"),
        svg.text(
            middle, y + CELL[1] / 2 + 14, f"{100 * low:.0f} to {100 * high:.0f}", anchor="middle",
            size=svg.FONT - 2, tone="ink",
        ),
    ]  # fmt: skip


def _map(content: Mapping[str, Any], matrix: Mapping[str, Any]) -> svg.Svg:
    names = [domain["name"] for domain in content["domains"]]
    foot = [
        ("mean of others", [each["value"] for each in matrix["from_others"]]),
        ("largest class", [domain["largest_class"] for domain in content["domains"]]),
    ]
    title = f"Accuracy, {matrix['title']}"
    return heat_map(title, names, matrix["accuracy"], matrix["intervals95"], foot)


def draw(content: Mapping[str, Any]) -> svg.Svg:
    """The heat map of what `omma shift --json` writes: trained, and aligned where that was asked."""
    return _map(content, content["matrices"][-1])


def shift_section(content: Mapping[str, Any], stated: bool = False) -> html.Section:
    """Heat maps of the trained network, the means of all, and the floors folded away.

    stated: the verdict stands elsewhere.
    """
    trained = [each for each in content["matrices"] if each["subject"] == "trained"]
    names = [domain["name"] for domain in content["domains"]]
    rows = [
        (
            each["title"],
            *((percent(each[key]["value"]), _ends(each[key])) for key in ("within", "across", "gap")),
            (f"{each['worst']}", percent(each["from_others"][names.index(each["worst"])]["value"])),
        )
        for each in content["matrices"]
    ]
    means = html.Table(("mean of", "within a domain", "across", "gap", "worst domain"), rows)
    floors = [
        html.Folded(f"Matrix of {each['title']}", _table(names, each))
        for each in content["matrices"]
        if each["subject"] != "trained"
    ]
    protocol = content["protocol"]
    caption = f"{protocol[:1].upper()}{protocol[1:]}."
    caption = caption if stated else f"{content['verdict']} {caption}"
    pictures = [*(_map(content, each) for each in trained), means, *floors]
    return html.Section(f"Domains by {content['by']}", caption, pictures)


def _ends(figure: Mapping[str, Any]) -> str:
    low, high = figure["interval95"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _table(names: Sequence[str], matrix: Mapping[str, Any]) -> html.Table:
    rows = [
        (
            name,
            *(
                (percent(value), f"{100 * low:.1f} to {100 * high:.1f}")
                for value, (low, high) in zip(matrix["accuracy"][i], matrix["intervals95"][i])
            ),
        )
        for i, name in enumerate(names)
    ]
    return html.Table(("trained on", *(f"on {name}" for name in names)), rows)


def section_of(file: Path, digest: str, notes: list[str]) -> html.Section | None:
    """The section by a run's last `omma shift`; None, with a note, if it is no use.

    digest: of the run's weights. notes: get the note.
    """
    if not file.exists():
        return None
    remedy = "`omma shift` writes it again"
    try:
        content = files.read_json(file, remedy)
        if content["digest"] != digest:
            notes.append("Domains are left out: they were measured with earlier weights of this run.")
            return None
        return shift_section(content)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        notes.append(f"{file.name} is damaged ({line(error)}): {remedy}")
        return None


def write_page(file: Path, content: Mapping[str, Any]) -> Path:
    """Write the page of a shift, of what `omma shift --json` writes."""
    images = sum(domain["images"] for domain in content["domains"])
    text = html.page(
        title=f"Shift: {Path(content['data']).name or content['data']}",
        verdicts=[html.Verdict(f"From one domain to another, by {content['by']}", content["verdict"])],
        facts=[
            ("Model", content["model"]),
            ("Weights", content["digest"][:12]),
            ("Test images", f"{images:,}"),
            ("Domains", count(len(content["domains"]), "domain")),
            ("Classes", f"{len(content['classes'])}"),
        ],
        sections=[shift_section(content, stated=True)],
        notes=content["notes"],
    )
    return html.write(file, text)
