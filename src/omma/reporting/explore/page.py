"""The map as one HTML file, or as a folder with thumbnails beside the page; neither loads anything else."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from omma.core import files
from omma.core.progress import Progress
from omma.core.protocols import Images
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.readers import Files
from omma.features.table import as_text
from omma.reporting.explore import sprite
from omma.reporting.explore.analysis import Analysis
from omma.reporting.explore.facets import Facet
from omma.reporting.explore.findings import LISTED
from omma.reporting.explore.layout import hilbert

BUDGET = 30_000_000  # bytes of the page that holds everything
FOLDER_BUDGET = 250_000_000  # bytes of the thumbnails beside a page
SCRIPTS = ("data", "colours", "view", "points", "pictures", "map", "gestures", "panels", "lists", "main")
# Colours that, with grey, stay apart for readers of any colour vision (test_explore.py measures it), on white
# and on black; further classes have the same colours in other shapes.
LIGHT = ("#1d4f9c", "#e08a00", "#219059", "#a1296c", "#31bde7", "#4a5810", "#858dff")
DARK = ("#61adc6", "#f0a93b", "#05eea8", "#ff48a4", "#a8e3ff", "#a9824a", "#b5a1f8")
TITLE = 200  # characters of a title


@dataclass(frozen=True)
class Content:
    """What the page shows beside the analysis."""

    title: str
    facets: Sequence[Facet]
    notes: Sequence[str] = ()
    skipped: Sequence[tuple[str, str]] = ()  # (path, reason) of what is not on the map


def write(
    out: Path,
    images: Images,
    analysis: Analysis,
    content: Content,
    *,
    side: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the page at `out` atomically, with all thumbnails in it; its bytes.

    images: those of the analysis, in its order. side: of a thumbnail in pixels; by default the largest that
    keeps the page below BUDGET.
    """
    order = np.argsort(hilbert(analysis.layout.xy), kind="stable")
    facts = _facts(analysis, content, images, out.parent)
    text = json.dumps(facts)
    left = (BUDGET - len(text) - 20 * len(order) - 200_000) * 3 / 4  # base64 takes 4 characters for 3 bytes
    side = side or sprite.fitting_side(images, order, 0.95 * left)
    with files.atomic_write(out) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        sizes, tail = [], _tail()
        head, rest = _document(content.title, "default-src 'none'; img-src data: blob:")
        file.write(head)
        for number, sheet in enumerate(sprite.sheets(images, order, side, progress)):
            sizes += sheet.sizes
            packed = base64.b64encode(sheet.jpeg).decode()
            file.write(f'<script type="text/plain" id="sheet-{number}">{packed}</script>\n')
        file.write(_json(facts | _thumbnails(order, sizes, side, None)) + rest + tail)
    return out.stat().st_size


def write_folder(
    out: Path,
    place: Path,
    images: Images,
    analysis: Analysis,
    content: Content,
    *,
    side: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write `index.html` and thumbnails as files into `out`, an empty folder; the bytes of all.

    The browser loads the thumbnails that are looked at. They are elements of the page (img), which also works
    where the page is opened as a file. place: where the folder will be: links are relative to it.
    """
    order = np.argsort(hilbert(analysis.layout.xy), kind="stable")
    side = side or sprite.fitting_side(images, order, FOLDER_BUDGET)
    facts = _facts(analysis, content, images, place)
    tiles = out / "thumbnails"
    tiles.mkdir()
    sizes, written = [], 0
    for number, sheet in enumerate(sprite.sheets(images, order, side, progress)):
        sizes += sheet.sizes
        (tiles / f"{number:05d}.jpg").write_bytes(sheet.jpeg)
        written += len(sheet.jpeg)
    head, rest = _document(content.title, "default-src 'none'; img-src 'self' file: data: blob:")
    page = head + _json(facts | _thumbnails(order, sizes, side, "thumbnails/")) + rest + _tail()
    (out / "index.html").write_text(page, encoding="utf-8", newline="\n")
    return written + len(page.encode())


# ---------------------------------------------------------------- what the page reads
def _facts(analysis: Analysis, content: Content, images: Images, folder: Path) -> dict[str, Any]:
    """All but the thumbnails. folder: where the page will be, which links are relative to."""
    paths = [as_text(images.path(i)) for i in range(len(images))]
    near, pairs, odd = analysis.neighbours, analysis.pairs, analysis.suspects
    outliers = np.argsort(-analysis.neighbour_distance, kind="stable")[: min(LISTED, len(paths) // 10)]
    facts: dict[str, Any] = {
        "title": content.title[:TITLE],
        "paths": paths,
        "links": _links(images, folder),
        "x": _packed(analysis.layout.xy[:, 0] * 65535, "<u2"),
        "y": _packed(analysis.layout.xy[:, 1] * 65535, "<u2"),
        "facets": [_facet(facet) for facet in content.facets],
        "neighbours": 0,
        "pairs": [],
        "pairsFound": len(pairs.i),
        "suspects": [],
        "suspectsFound": len(odd.rows),
        "outliers": [[int(i), round(float(analysis.neighbour_distance[i]), 4)] for i in outliers],
        "notes": list(content.notes),
        "skipped": [[as_text(path), reason] for path, reason in content.skipped[:LISTED]],
        "skippedFound": len(content.skipped),
        "colours": {"light": LIGHT, "dark": DARK},
    }
    if near is not None:
        facts |= {
            "neighbours": near.indices.shape[1],
            "near": _packed(near.indices, "<u4"),
            "similarity": _packed((near.similarities.clip(-1, 1) + 1) / 2 * 65535, "<u2"),
            "pairs": [
                [int(i), int(j), round(float(s), 4)]
                for i, j, s in zip(pairs.i[:LISTED], pairs.j[:LISTED], pairs.similarity)
            ],
            "suspects": [
                [int(row), images.classes[other], round(float(share), 3)]
                for row, other, share in zip(odd.rows[:LISTED], odd.instead, odd.share)
            ],
        }
    return facts


def _facet(facet: Facet) -> dict[str, Any]:
    found: dict[str, Any] = {"name": facet.name, "kind": facet.kind}
    if facet.kind == "class":
        assert facet.codes is not None
        return found | {"values": facet.values, "codes": _packed(facet.codes + 1, "<u2")}  # 0 is none
    if facet.kind == "number":
        assert facet.numbers is not None
        return found | {"numbers": _packed(facet.numbers, "<f4")}
    return found | {"texts": facet.texts}


def _thumbnails(
    order: np.ndarray, sizes: list[tuple[int, int]], side: int, folder: str | None
) -> dict[str, Any]:
    """Where each image's thumbnail is: its number among all of them, and its size in pixels."""
    tile = np.empty(len(order), np.int64)
    tile[order] = np.arange(len(order))
    measured = np.array(sizes)[tile]
    return {
        "side": side,
        "perRow": sprite.per_row(side),
        "tile": _packed(tile, "<u4"),
        "width": _packed(measured[:, 0], "u1"),
        "height": _packed(measured[:, 1], "u1"),
        "folder": folder,
    }


def _links(images: Images, folder: Path) -> str | None:
    """The address of the images' folder, relative to the page's; None where images are no files here."""
    if not isinstance(images, IndexedImages) or not isinstance(images.identity.store, Files):
        return None
    root = Path(images.identity.store.root).absolute()
    try:
        address = os.path.relpath(root, folder.absolute()).replace(os.sep, "/")
    except ValueError:  # another drive of Windows
        return root.as_uri() + "/"
    return quote(os.fsencode(address)) + "/"


def _packed(values: np.ndarray, kind: str) -> str:
    """Numbers as base64, little-endian; rounded where they become whole numbers."""
    whole = np.dtype(kind).kind == "u"
    return base64.b64encode(np.asarray(np.rint(values) if whole else values, kind).tobytes()).decode()


# ---------------------------------------------------------------- the document
def _json(facts: dict[str, Any]) -> str:
    """The facts as an element of the page; no text in it can end the element or begin another."""
    text = json.dumps(facts, allow_nan=False, separators=(",", ":"))  # in ASCII: U+2028 is escaped
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="facts">{text}</script>\n'


def _document(title: str, sources: str) -> tuple[str, str]:
    """The page before and after its data, without the scripts; sources: the policy on pictures."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in _scripts())
    allowed = " ".join(
        f"'sha256-{h}'" for h in hashes
    )  # the page's own scripts, and none that came with a name
    policy = (
        f"{sources}; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "TITLE": escape(title[:TITLE]), "CSS": _asset("page.css")}
    head, rest = _asset("page.html").split("<!-- DATA -->\n")
    fill = re.compile(r"\{\{(\w+)\}\}")
    return fill.sub(lambda m: parts[m[1]], head), fill.sub(lambda m: parts[m[1]], rest)


def _tail() -> str:
    return "".join(f"<script>{text}</script>\n" for text in _scripts()) + "</body>\n</html>\n"


def _scripts() -> Iterator[str]:
    for name in SCRIPTS:
        yield _asset(f"{name}.js")


@cache
def _asset(name: str) -> str:
    text = resources.files("omma.reporting.explore").joinpath("assets", name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")
