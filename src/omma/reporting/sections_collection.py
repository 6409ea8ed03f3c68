"""Sections of a run's report on its images: a map, the same ones twice, domains against each other."""

from collections import Counter

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from omma.core.errors import line
from omma.core.words import count
from omma.curation.duplicates.exact import Decoder, same
from omma.curation.duplicates.hashes import hashes
from omma.evaluation.judge_domains import field_of, measured
from omma.evaluation.shift_table import About
from omma.reporting import svg, thumbnails
from omma.reporting.explore.layout import layout, reduced
from omma.reporting.gallery import Gallery
from omma.reporting.html import WIDEST, Section
from omma.reporting.pictures import Cell, Grid, tile
from omma.reporting.shift_page import shift_section

SIDE = (1080, 660)  # pixels of the map
THUMBNAIL = 44
LEGEND = 170  # pixels at the left
FEWEST = 8  # images that make a map
CLASSES = len(svg.COLOURS)  # that have a colour
SHOWN = 6  # groups of the same picture


def sections(gallery: Gallery, domains: str | None, notes: list[str]) -> list[Section]:
    """Those that there is something to show of; what fails becomes a note.

    domains: a column whose values are set against each other. Raises ValueError where it cannot be.
    """
    found = [] if domains is None else [domain_matrix(gallery, domains)]
    for name, make in (("Map", collection_map), ("Duplicates", duplicates)):
        try:
            section = make(gallery)
        except (ValueError, OSError, RuntimeError) as error:
            notes.append(f"{name}: not drawn ({line(error)})")
            continue
        found += [] if section is None else [section]
    return found


# ---------------------------------------------------------------- a map
def collection_map(gallery: Gallery) -> Section | None:
    """The first two principal components as dots, thumbnails where there is room; None for few images."""
    features = gallery.features
    if len(features.indices) < FEWEST:
        return None
    components, share = reduced(features.vectors, gallery.seed)
    places = layout(components, share, None, "pca", gallery.seed)
    width, height = SIDE
    margin = THUMBNAIL
    span = np.maximum(places.xy.max(0) - places.xy.min(0), 1e-6)
    colours, legend = _colours(gallery, features.indices)
    left = margin + (LEGEND if legend else 0)
    room = (width - left - margin, height - 2 * margin)
    at = (places.xy - places.xy.min(0)) / span * room + (left, margin)
    at[:, 1] = height - at[:, 1]
    picture = Image.new("RGB", SIDE, "white")
    draw = ImageDraw.Draw(picture)
    for (x, y), colour in zip(at.tolist(), colours):
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    for row in _apart(at, gallery.seed):
        small = thumbnails.thumbnail(gallery.images, int(features.indices[row]), THUMBNAIL - 6)
        corner = (round(at[row, 0] - small.width / 2), round(at[row, 1] - small.height / 2))
        draw.rectangle(
            (corner[0] - 2, corner[1] - 2, corner[0] + small.width + 1, corner[1] + small.height + 1),
            fill=colours[row],
        )
        picture.paste(small, corner)
    _legend(draw, legend)
    caption = (
        f"{count(len(at), 'image')} by their features: near each other, alike to the model. {places.note} "
        "Where there is room, an image stands at its place. `omma explore` makes a map to search and point "
        "at."
    )
    return Section("Map of the images", caption, [picture])


def _colours(gallery: Gallery, rows: np.ndarray) -> tuple[list[str], list[tuple[str, str]]]:
    """A colour an image, by label; and (name, colour) of the largest classes."""
    grey = "#8a8f98"
    labels = gallery.images.labels
    if labels is None:
        return [grey] * len(rows), []
    own = labels[rows].tolist()
    largest = [c for c, _ in Counter(c for c in own if c >= 0).most_common(CLASSES)]
    colour = dict(zip(largest, svg.COLOURS))
    legend = [(gallery.images.classes[c], colour[c]) for c in largest]
    if any(c not in colour for c in own):
        legend.append(("others", grey))
    return [colour.get(c, grey) for c in own], legend


def _apart(at: np.ndarray, seed: int) -> list[int]:
    """Rows whose thumbnails do not overlap, in a seeded order."""
    taken: list[np.ndarray] = []
    chosen: list[int] = []
    for row in np.random.default_rng(seed).permutation(len(at)).tolist():
        if not taken or (np.abs(np.array(taken) - at[row]).max(1) >= THUMBNAIL).all():
            taken.append(at[row])
            chosen.append(row)
    return chosen


def _legend(draw: ImageDraw.ImageDraw, legend: list[tuple[str, str]]) -> None:
    font = ImageFont.load_default(15)
    for number, (name, colour) in enumerate(legend):
        top = 8 + 22 * number
        draw.rectangle((8, top, 22, top + 14), fill=ImageColor.getrgb(colour))
        draw.text((28, top - 1), name[:16], fill="#1c2127", font=font)


# ---------------------------------------------------------------- the same picture twice
def duplicates(gallery: Gallery) -> Section | None:
    """Images of the same bytes or the same pixels; None without any."""
    found = same(hashes(gallery.images), Decoder(gallery.images))
    if not found.classes:
        return None
    splits, rows = gallery.images.splits, []
    for members in found.classes[:SHOWN]:
        cells: list[Cell] = []
        for member in members[:WIDEST]:
            kind = {"file": "the same file", "pixels": "the same pixels"}
            text = "" if member == members[0] else kind[found.kind(members[0], member)]
            if splits is not None:
                text = " ".join(filter(None, (text, f"({splits[member]})")))
            cells.append(Cell(tile(gallery.images.read(member)), text, path=gallery.images.path(member)))
        rows.append(tuple(cells))
    surplus = sum(len(members) - 1 for members in found.classes)
    repeat = "repeats" if surplus == 1 else "repeat"
    caption = (
        f"{count(surplus, 'image')} of {len(gallery.images):,} looked at {repeat} another, byte for byte or "
        "pixel for pixel. `omma clean` also finds those that merely look the same."
    )
    across = 0 if splits is None else sum(len(set(splits[list(m)].tolist())) > 1 for m in found.classes)
    if across:
        caption += f" {count(across, 'group')} of them in both train and test part: scores are too high."
    widest = max(map(len, rows))
    return Section("The same picture twice", caption, [Grid(("",) * widest, tuple(rows))])


# ---------------------------------------------------------------- domains
def domain_matrix(gallery: Gallery, column: str) -> Section:
    """Accuracy of k-NN from each value of a column to each other. Raises ValueError where there is none."""
    field = field_of(gallery.images, column, option="--domains")
    features = gallery.features
    good = np.flatnonzero(np.isin(field.rows, features.indices))
    field = field.readable(good)
    vectors = features.vectors[np.searchsorted(features.indices, field.rows)]
    size = gallery.model.preprocess.size
    about = About(model="", digest=gallery.model.digest, data="", features=f"features of {size} x {size} px")
    found = measured(gallery.images, field, {"trained": vectors}, about, protocol="knn", seed=gallery.seed)
    return shift_section(found.to_json())
