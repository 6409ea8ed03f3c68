"""The page of `omma clean`: what was found, with pictures, and the thresholds that decided."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from omma.core.protocols import BadImage, Images
from omma.core.words import count
from omma.curation.findings import KINDS, Finding, counted
from omma.reporting import html, thumbnails
from omma.reporting.html import Section, Shown, Table, Verdict
from omma.reporting.pictures import LARGEST, Cell, Grid, tile

WORST, FEWER = 27, 24  # examples of a finding that has one picture, or two
SINGLE = ("blank", "dark", "bright", "blurred", "odd-sized", "outlier")
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
    """Write the page.

    findings: in the table's order. against: the other collection, whose copies were sought. removed: images
    that were left out of lists or copies; None: nothing was applied.
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
    looked_for = [kind for kind in KINDS if kind in counts or kind in thresholds]
    overview = Section(
        "What was looked for", "And how many images have it.",
        [Table(("finding", "images"), [(TITLES[kind], f"{counts.get(kind, 0):,}") for kind in looked_for])],
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
    shown = own[: WORST if kind in SINGLE else FEWER]
    some = f", of which {len(shown)} are shown" if len(shown) < len(own) else ""
    caption = f"{KINDS[kind]} {count(len(own), 'finding')}{some}."
    if kind in thresholds:
        caption += f" Threshold: {thresholds[kind]}."
    pictures: list[Shown]
    if kind in UNSEEN:
        pictures = [Table(("file", "why"), [(_path(each, images), each.detail) for each in shown])]
    elif kind in SINGLE:
        pictures = [_grid([_cell(images, each.row, each.detail) for each in shown])]
    elif kind == "mislabelled":
        pictures = [Grid(("given", "the like"), tuple(_labels(each, images) for each in shown))]
    else:
        pictures = [Grid(("copy", "of"), tuple(_pair(each, images, against) for each in shown))]
    return Section(TITLES[kind], caption, pictures)


def _labels(finding: Finding, images: Images) -> tuple[Cell | None, ...]:
    """The image with its label, and the one most like it of the label that is suggested."""
    probability = "" if finding.probability is None else f"{finding.probability:.2f} "
    suggested = probability + finding.suggested
    if finding.related_row < 0:  # with several labels an image none stands for "not cat"
        return _cell(images, finding.row, f"{finding.given} → {suggested}"), None
    return _cell(images, finding.row, finding.given), _cell(images, finding.related_row, suggested)


def _path(finding: Finding, images: Images) -> str:
    return images.path(finding.row) if finding.row >= 0 else finding.path


def _grid(cells: Sequence[Cell], columns: int = html.WIDEST) -> Grid:
    rows = tuple(tuple(cells[at : at + columns]) for at in range(0, len(cells), columns))
    return Grid((), rows)


def _pair(finding: Finding, images: Images, against: Images | None) -> tuple[Cell | None, ...]:
    """A copy beside the image that it is a copy of."""
    source = against if finding.elsewhere else images
    copy = _cell(images, finding.row, finding.detail)
    if finding.related_row < 0 or source is None:
        return copy, None
    return copy, _cell(source, finding.related_row, "")


def _cell(images: Images, row: int, text: str) -> Cell:
    path = images.path(row)
    try:
        picture = tile(images.read(row, LARGEST))
    except BadImage:
        picture = thumbnails.thumbnail(images, row, LARGEST)
    return Cell(picture, text, path=path)
