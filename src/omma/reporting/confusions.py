"""The classes of an evaluation in a report: a table, a picture of the confusions, and example images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omma.core.protocols import BadImage, Images
from omma.evaluation import NAMES, confusion
from omma.evaluation.detail import COLUMNS, PRIMARY
from omma.reporting import html, pictures, svg
from omma.reporting.pictures import Cell, Grid
from omma.reporting.results import percent

DRAWN = 40  # classes in the picture of confusions
PAIRS = 6  # confused pairs that images are shown of
EACH = 3  # images of either class
WIDTH, LABELS = (
    960,
    190,
)  # at most, of the picture and of the names at its left and top; units of the view box
LETTERS = 26  # of a name


def sections(details: Sequence[Mapping[str, Any]], images: Images) -> list[html.Section]:
    """The sections of one protocol's details, as `Detail.to_json` writes them (the one that is printed).

    Images are shown where they are found by their paths.
    """
    made = []
    for detail in sorted(details, key=lambda each: PRIMARY.index(each["protocol"]))[:1]:
        name = NAMES[detail["protocol"]]
        rows = sorted(detail["by_class"], key=lambda row: (row["f1"], row["class"]))
        columns = [column for column in COLUMNS if any(column in row for row in rows)]
        table = html.Table(
            ("class", "test images", *(COLUMNS[column] for column in columns)),
            [(row["class"], f"{row['n_test']:,}", *(_cell(row, c) for c in columns)) for row in rows],
        )
        caption = f"By the {name}; the lowest F1 first; below each value its 95 % interval."
        made.append(html.Section("Classes", caption, [html.Folded(f"{len(rows):,} classes", table)]))
        if not detail["pairs"]:
            continue
        made.append(html.Section("Confusions", _caption(detail, name), [matrix(detail)]))
        grid = _examples(detail, images)
        if grid is not None:
            caption = (
                "Test images of the first class that were taken for the second (dashed red), and images "
            )
            made.append(html.Section("The most confused classes", caption + "of the second.", [grid]))
    return made


def _cell(row: Mapping[str, Any], column: str) -> tuple[str, str]:
    if column not in row:
        return "–", ""
    low, high = (percent(end).removesuffix(" %") for end in row[f"{column}_interval95"])
    return percent(row[column]), f"{low} to {high}"


def _caption(detail: Mapping[str, Any], name: str) -> str:
    pairs = [confusion.Pair(0, 1, pair["images"], pair["of"]) for pair in detail["pairs"][:3]]
    named = [(pair["true"], pair["predicted"]) for pair in detail["pairs"][:3]]
    words = "; ".join(confusion.sentence(pair, both) for pair, both in zip(pairs, named, strict=True))
    drawn = f" The {DRAWN} classes that are confused most." if len(detail["by_class"]) > DRAWN else ""
    return (
        f"By the {name}. A row is a class of the test part, a column an answer.{drawn} Most often: {words}."
    )


# ---------------------------------------------------------------- the matrix
def matrix(detail: Mapping[str, Any]) -> svg.Svg:
    """Rows are the true classes, columns the answers; colour is the share of the row's images.

    Of many classes those are drawn that are confused most, in the order of the taxonomy if there is one.
    """
    counts = np.zeros((len(detail["classes"]),) * 2, np.int64)
    for true, predicted, n in detail["confusions"]:
        counts[true, predicted] = n
    order = np.array(detail["order"], np.int64)
    order = order[(counts.sum(0) + counts.sum(1))[order] > 0]
    wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    if len(order) > DRAWN:
        most = set(np.argsort(-wrong[order], kind="stable")[:DRAWN].tolist())
        order = order[[k in most for k in range(len(order))]]
    side = min((WIDTH - LABELS) / len(order), 48.0)
    size = int(max(7, min(13, side - 2)))
    names = [_short(detail["classes"][k]) for k in order]
    edge = min(LABELS, 10 + max(svg.wide(name) for name in names) * size / svg.FONT)
    parts = []
    for k, name in enumerate(names):
        at = edge + side * (k + 0.5)
        parts.append(svg.text(edge - 6, at + 0.35 * size, name, size=size, anchor="end"))
        turned = svg.text(0, 0, name, size=size)
        parts.append(
            f'<g transform="translate({at + 0.35 * size:.1f} {edge - 6:.1f}) rotate(-90)">{turned}</g>'
        )
    end = edge + side * len(order)
    lines = "".join(f"M{edge:.1f} {y:.1f}H{end:.1f}M{y:.1f} {edge:.1f}V{end:.1f}"
                    for y in edge + side * np.arange(len(order) + 1))  # fmt: skip
    parts.append(f'<path d="{lines}" style="stroke:var(--line,#ddd);stroke-width:.5;fill:none"/>')
    sizes = np.maximum(counts.sum(1), 1)
    for i, true in enumerate(order):
        for j, predicted in enumerate(order):
            if n := int(counts[true, predicted]):
                parts.append(
                    _square(
                        i, j, edge, side, n, int(sizes[true]), detail["classes"], (int(true), int(predicted))
                    )
                )
    return svg.finish("Confusion matrix", end + 4, parts, svg.WIDTH if end + 4 <= svg.WIDTH else WIDTH)


def _square(
    i: int, j: int, edge: float, side: float, n: int, of: int, names: Sequence[str], pair: tuple[int, int]
) -> str:
    share = n / of
    true, predicted = (names[k] for k in pair)
    right = f"{true}: {n:,} of {of:,} right"
    hint = right if i == j else confusion.sentence(confusion.Pair(0, 1, n, of), (true, predicted))
    tone = "var(--s1,#2f6fb5)" if i == j else "var(--bad,#b3261e)"
    opacity = share if i == j else min(1.0, 0.25 + 1.5 * share)
    x, y = edge + side * j, edge + side * i
    text = ""
    if side >= 16 and i != j:
        text = svg.text(x + side / 2, y + side / 2 + 4, f"{n}", size=11, anchor="middle", tone="ink")
    box = f'x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{side - 1:.1f}" height="{side - 1:.1f}"'
    style = f"fill:{tone};fill-opacity:{opacity:.2f}"
    return f'<g><title>{svg.quote(hint)}</title><rect {box} style="{style}"/>{text}</g>'


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"


# ---------------------------------------------------------------- example images
def _examples(detail: Mapping[str, Any], images: Images) -> Grid | None:
    """Rows of EACH images that were taken for the other class, and EACH of that class."""
    pairs = [pair for pair in detail["pairs"] if pair["taken"]][:PAIRS]
    number = {images.path(i): i for i in range(len(images))} if pairs else {}
    rows = []
    for pair in pairs:
        taken = _cells(pair["taken"], pair["true"], False, number, images)
        like = _cells(pair["like"], pair["predicted"], None, number, images)
        if taken:
            rows.append((*taken, *[None] * (EACH - len(taken)), *like))
    if not rows:
        return None
    return Grid(("taken for another", *[""] * (EACH - 1), "of that class", *[""] * (EACH - 1)), tuple(rows))


def _cells(
    paths: Sequence[str], name: str, mark: bool | None, number: Mapping[str, int], images: Images
) -> list[Cell | None]:
    cells: list[Cell | None] = []
    for path in paths:
        if path not in number or len(cells) == EACH:
            continue
        try:
            picture = pictures.tile(images.read(number[path], pictures.LARGEST))
            cells.append(Cell(picture, name.replace("_", " "), mark, path))
        except BadImage:
            continue
    return cells
