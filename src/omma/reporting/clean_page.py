"""The page of `omma clean`: what was found, with pictures, and the thresholds that decided."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from omma.core.protocols import BadImage, Images
from omma.core.words import count
from omma.curation.findings import KINDS, Finding, counted
from omma.reporting import html, thumbnails
from omma.reporting.html import Section, Shown, Table, Verdict
from omma.reporting.pictures import LARGEST, Cell, Grid, tile

WORST = 27  # examples of each finding
PAIRS = ("leakage", "duplicate")  # findings that another image belongs to
UNSEEN = ("broken", "inaccessible")  # findings that have no picture
TITLES = {
    "broken": "Broken", "inaccessible": "Not accessible", "leakage": "Leakage between parts",
    "mislabelled": "Mislabelled", "blank": "Blank", "duplicate": "Copies", "dark": "Dark", "bright": "Bright",
    "blurred": "Blurred", "odd-sized": "Odd-sized", "outlier": "Outliers",
}  # fmt: skip


def write_page(
    file: Path,
    images: Images,
    findings: Sequence[Finding],
    *,
    thresholds: Mapping[str, str],
    notes: Sequence[str] = (),
    against: Images | None = None,
    removed: int | None = None,
    model: str = "",
) -> Path:
    """Write the page; findings: in the table's order; against: the other collection that copies were sought in.

    removed: images that were left out of lists or copies; None: nothing was applied.
    """
    counts = counted(findings)
    found = len({(each.row, each.path) for each in findings})
    total = len(images)
    source = str(getattr(images, "source", "")) or "images"
    lead = (
        f"{count(found, 'image has', 'images have')} a finding, of {total:,}"
        if found
        else f"Nothing found in {count(total, 'image')}"
    )
    facts = [("Images", f"{total:,}"), ("With a finding", f"{found:,} ({found / max(total, 1):.1%})")]
    facts += [("Model", model)] if model else []
    facts += [("Left out", f"{removed:,}")] if removed is not None else []
    sections = [_section(kind, findings, images, against, thresholds) for kind in counts]
    rows = [
        (TITLES[kind], f"{counts.get(kind, 0):,}", (thresholds.get(kind, ""), ""))
        for kind in KINDS if kind in counts or kind in thresholds
    ]  # fmt: skip
    overview = Section(
        "What was looked for", "Beside each finding: how many images have it. Thresholds are chosen on this collection.",
        [Table(("finding", "images"), [(title, number) for title, number, _ in rows])],
    )  # fmt: skip
    limits = [(TITLES[kind], text) for kind, text in thresholds.items()]
    text = html.page(
        title=f"Clean: {PurePath(source).name or source}",
        verdicts=[Verdict("This collection", lead, "warn" if found else "good", _advice(counts))],
        facts=facts,
        sections=[overview, *sections],
        notes=[*(f"{title}: {how}" for title, how in limits), *notes],
    )
    return html.write(file, text)


def _advice(counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    return "Look before you remove anything: omma only lists, and never deletes."


def _section(
    kind: str,
    findings: Sequence[Finding],
    images: Images,
    against: Images | None,
    thresholds: Mapping[str, str],
) -> Section:
    own = [each for each in findings if each.kind == kind]
    shown = own[:WORST]
    caption = f"{KINDS[kind]} {count(len(own), 'finding')}" + (
        f", the worst {len(shown)} shown." if len(shown) < len(own) else "."
    )
    if kind in thresholds:
        caption += f" Threshold: {thresholds[kind]}."
    if kind == "mislabelled":
        caption += " Below each picture: its label, what is suggested, and the probability of that."
    pictures: list[Shown]
    if kind in UNSEEN:
        pictures = [Table(("file", "why"), [(_path(each, images), each.detail) for each in shown])]
    elif kind in PAIRS:
        pictures = [_pairs(shown, images, against)]
    else:
        pictures = [_grid([_cell(images, each.row, _text(each)) for each in shown])]
    return Section(TITLES[kind], caption, pictures)


def _text(finding: Finding) -> str:
    if finding.kind != "mislabelled":
        return finding.detail
    probability = "" if finding.probability is None else f" ({finding.probability:.2f})"
    return f"{finding.given} → {finding.suggested}{probability}"


def _path(finding: Finding, images: Images) -> str:
    return images.path(finding.row) if finding.row >= 0 else finding.path


def _grid(cells: Sequence[Cell], columns: int = html.WIDEST) -> Grid:
    rows = tuple(tuple(cells[at : at + columns]) for at in range(0, len(cells), columns))
    return Grid((), rows)


def _pairs(findings: Sequence[Finding], images: Images, against: Images | None) -> Grid:
    """Each copy beside the image that it is a copy of."""
    rows = []
    for each in findings:
        copy = _cell(images, each.row, each.detail)
        source = against if each.elsewhere else images
        other = None if each.related_row < 0 or source is None else _cell(source, each.related_row, "")
        rows.append((copy, other))
    return Grid(("copy", "of"), tuple(rows))


def _cell(images: Images, row: int, text: str) -> Cell:
    path = images.path(row)
    try:
        picture = tile(images.read(row, LARGEST))
    except BadImage:
        picture = thumbnails.thumbnail(images, row, LARGEST)
    return Cell(picture, text, path=path)
