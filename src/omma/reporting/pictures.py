"""Grids of pictures that show what a model sees: neighbours, attention, parts, reconstructions."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

LARGEST = 192  # longest side of a cell's picture, in pixels
SMALLEST = 96  # smaller pictures are enlarged by an integer factor
# The "inferno" colour map (Smith & van der Walt, 2015; public domain) at 0, 0.1, ... 1: ordered by lightness.
INFERNO = np.array(
    [
        (0x00, 0x00, 0x04), (0x16, 0x0B, 0x39), (0x42, 0x0A, 0x68), (0x6A, 0x17, 0x6E), (0x93, 0x26, 0x67),
        (0xBC, 0x37, 0x54), (0xDD, 0x51, 0x3A), (0xF3, 0x78, 0x19), (0xFC, 0xA5, 0x0A), (0xF6, 0xD7, 0x46),
        (0xFC, 0xFF, 0xA4),
    ],
    dtype=np.float64,
)  # fmt: skip
BOX = (252, 200, 60)  # a bright colour of that map


@dataclass(frozen=True)
class Cell:
    """One picture of a grid with `text` below it; `mark`: right (True), wrong (False) or neither.

    path: of the image's file, whose name stands below the picture.
    """

    image: Image.Image
    text: str = ""
    mark: bool | None = None
    path: str = ""


@dataclass(frozen=True)
class Grid:
    """Rows of cells under column heads; None is an empty cell."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Cell | None, ...], ...]


# ---------------------------------------------------------------- the pictures
def neighbours(
    query_images: np.ndarray,
    neighbour_images: np.ndarray,
    query_labels: Sequence[str] | None = None,
    neighbour_labels: Sequence[Sequence[str]] | None = None,
    similarities: np.ndarray | None = None,
    query_paths: Sequence[str] | None = None,
    neighbour_paths: Sequence[Sequence[str]] | None = None,
) -> Grid:
    """Each query with its nearest images, nearest first, marked right or wrong where both labels are given.

    query_images [q, h, w, c]; neighbour_images [q, k, h, w, c]; neighbour_labels and
    neighbour_paths q lists of k; similarities [q, k], cosines.
    """
    queries, near = _batch(query_images), np.asarray(neighbour_images)
    if near.ndim != 5 or len(near) != len(queries):
        raise ValueError(f"neighbour_images {near.shape}: must be [{len(queries)}, k, h, w, c]")
    for name, value, shape in (
        ("query_labels", query_labels, (len(queries),)),
        ("neighbour_labels", neighbour_labels, near.shape[:2]),
        ("similarities", similarities, near.shape[:2]),
        ("query_paths", query_paths, (len(queries),)),
        ("neighbour_paths", neighbour_paths, near.shape[:2]),
    ):
        if value is not None and np.shape(value) != shape:
            raise ValueError(f"{name} {np.shape(value)}: must be {list(shape)}, one for each image")
    digits = 2 if similarities is None else decimals(similarities)
    rows = []
    for i, query in enumerate(queries):
        label = query_labels[i] if query_labels is not None else ""
        row = [Cell(tile(query), label, path=query_paths[i] if query_paths is not None else "")]
        for j, image in enumerate(near[i]):
            label = neighbour_labels[i][j] if neighbour_labels is not None else ""
            closeness = f"{similarities[i, j]:.{digits}f}" if similarities is not None else ""
            mark = label == query_labels[i] if label and query_labels is not None else None
            path = neighbour_paths[i][j] if neighbour_paths is not None else ""
            row.append(Cell(tile(image), " ".join(filter(None, (closeness, label))), mark, path))
        rows.append(tuple(row))
    return Grid(("query", "nearest", *[""] * (near.shape[1] - 1)), tuple(rows))


def decimals(rows: np.ndarray, most: int = 5) -> int:
    """Places after the point, from 2 on, with which no row [q, k] reads as one number all along."""

    def same(places: int) -> np.ndarray:
        return np.ptp(np.round(rows, places), axis=1) == 0

    return next((places for places in range(2, most) if (same(places) == same(most)).all()), most)


def attention(
    images: np.ndarray, maps: np.ndarray, heads: int = 6, paths: Sequence[str] | None = None
) -> Grid:
    """Where the last layer looks: the image, the mean over heads, and the `heads` most focused heads.

    images [n, h, w, c]; maps [n, heads, gh, gw], not negative. The colours of a map run from 0 to its largest
    value, or to twice its mean if that is larger, so that even attention looks even.
    """
    images, maps = _batch(images), np.asarray(maps, dtype=np.float64)
    if maps.ndim != 4 or len(maps) != len(images):
        raise ValueError(f"maps {maps.shape}: must be [{len(images)}, heads, gh, gw]")
    chosen = focused(maps, heads)
    rows = []
    for image, head_maps, path in zip(images, maps, paths or itertools.repeat("")):
        base = tile(image)
        cells = [Cell(base, path=path), Cell(_overlay(base, head_maps.mean(0)))]
        rows.append((*cells, *(Cell(_overlay(base, head_maps[h])) for h in chosen)))
    return Grid(("image", "mean", *(f"head {h + 1}" for h in chosen)), tuple(rows))


def parts(
    images: np.ndarray, boxes: np.ndarray, maps: np.ndarray, paths: Sequence[str] | None = None
) -> Grid:
    """The patches that a network has chosen, outlined, and the scores they were chosen by.

    images [n, h, w, c]; boxes [n, heads, 4]: top, left, bottom, right in pixels, one for each head; maps
    [n, heads, gh, gw], not negative, each head's scores.
    """
    images, boxes, maps = _batch(images), np.asarray(boxes), np.asarray(maps, dtype=np.float64)
    if boxes.shape != (len(images), boxes.shape[1], 4) or maps.shape[:2] != boxes.shape[:2]:
        raise ValueError(
            f"boxes {boxes.shape} and maps {maps.shape}: must be [{len(images)}, heads, 4] and "
            f"[{len(images)}, heads, gh, gw]"
        )
    rows = []
    for image, own, scores, path in zip(images, boxes, maps, paths or itertools.repeat("")):
        base, different = tile(image), np.unique(own, axis=0)
        text = f"{len(own)} heads, {len(different)} places"
        outlined = _outlined(base, different * (base.width / image.shape[1]))
        rows.append((Cell(base, path=path), Cell(outlined, text), Cell(_overlay(base, scores.mean(0)))))
    return Grid(("image", "chosen", "scores"), tuple(rows))


def reconstructions(
    original: np.ndarray,
    masked: np.ndarray | None,
    predicted: np.ndarray,
    paths: Sequence[str] | None = None,
) -> Grid:
    """What the model saw and what it predicted; each [n, h, w, c], hidden pixels (NaN in `masked`) are grey.

    masked: None if the model saw the original.
    """
    heads = ("original", "seen", "predicted") if masked is not None else ("original", "predicted")
    masked = original if masked is None else masked
    original, masked, predicted = _batch(original), _batch(masked), _batch(predicted)
    if not original.shape == masked.shape == predicted.shape:
        raise ValueError(
            f"shapes {original.shape}, {masked.shape}, {predicted.shape}: must be one [n, h, w, c]"
        )
    rows = []
    for triple, path in zip(zip(original, masked, predicted), paths or itertools.repeat("")):
        span = limits(triple[0])  # one for all three, which makes brightness comparable
        shown = triple if len(heads) == 3 else (triple[0], triple[2])
        first, *others = (tile(image, span) for image in shown)
        rows.append((Cell(first, path=path), *map(Cell, others)))
    return Grid(heads, tuple(rows))


# ---------------------------------------------------------------- from arrays to colours
def limits(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values shown as black and as white, per channel, for an image [h, w, c].

    0 and 255 for 8-bit images of up to three channels, 0 and 1 for floats within [0, 1], otherwise the 1st
    and 99th percentile of the image.
    """
    shown = np.where(np.isfinite(image[..., :3]), image[..., :3], np.nan).astype(np.float64)
    shown = shown.reshape(-1, shown.shape[-1])
    ones = np.ones(shown.shape[-1])
    if np.isnan(shown).all(0).any():
        return 0 * ones, ones
    if image.shape[-1] <= 3 and image.dtype == np.uint8:
        return 0 * ones, 255 * ones
    if image.shape[-1] <= 3 and np.nanmin(shown) >= 0 and np.nanmax(shown) <= 1:
        return 0 * ones, ones
    low, high = np.nanpercentile(shown, (1, 99), axis=0)
    return low, np.where(high > low, high, low + 1)


def tile(image: np.ndarray, span: tuple[np.ndarray, np.ndarray] | None = None) -> Image.Image:
    """One image [h, w, c] as RGB: its first three channels (one is grey, two lack blue), large enough to see.

    span: the `limits` to use instead of the image's own. Values that are not finite become mid grey. Large
    images are reduced to LARGEST, small ones enlarged by an integer factor to SMALLEST or more.
    """
    shown = image[..., :3].astype(np.float64)
    low, high = span or limits(image)
    values = (shown - low) / (high - low)
    values = (255 * np.where(np.isfinite(values), values, 0.5).clip(0, 1)).round().astype(np.uint8)
    if values.shape[-1] == 1:
        values = values.repeat(3, axis=-1)
    elif values.shape[-1] == 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    picture = Image.fromarray(np.ascontiguousarray(values))
    longest = max(picture.size)
    if longest > LARGEST:
        size = tuple(max(1, round(side * LARGEST / longest)) for side in picture.size)
        return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    factor = math.ceil(SMALLEST / longest)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def inferno(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] of any shape to colours [..., 3] in [0, 255]."""
    at = np.asarray(values, dtype=np.float64).clip(0, 1)
    stops = np.linspace(0, 1, len(INFERNO))
    return np.stack([np.interp(at, stops, INFERNO[:, c]) for c in range(3)], axis=-1)


def focused(maps: np.ndarray, most: int) -> list[int]:
    """The `most` heads of maps [n, heads, gh, gw] with the lowest mean entropy, in ascending order."""
    share = maps.reshape(*maps.shape[:2], -1)
    share = share / np.maximum(share.sum(-1, keepdims=True), 1e-12)
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(-1).mean(0)
    return sorted(int(h) for h in np.argsort(entropy, kind="stable")[:most])


def _overlay(base: Image.Image, weights: np.ndarray) -> Image.Image:
    weights = np.nan_to_num(weights, posinf=0.0, neginf=0.0).clip(0)
    return overlay(base, weights, max(float(weights.max()), 2 * float(weights.mean())))


def overlay(base: Image.Image, weights: np.ndarray, top: float) -> Image.Image:
    """A map [gh, gw] of finite values in colours from 0 to `top`, over the picture in grey."""
    top = max(top, 1e-12)
    small = Image.fromarray((weights / top).astype(np.float32))
    heat = np.asarray(small.resize(base.size, Image.Resampling.BICUBIC), dtype=np.float64).clip(0, 1)
    grey = np.asarray(base.convert("L"), dtype=np.float64)[..., None]
    mixed = 0.4 * grey + 0.6 * inferno(heat)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def with_scale(picture: Image.Image) -> Image.Image:
    """The picture above a bar with the map's colours, from 0 at left to the largest at right."""
    gap, thick = 3, max(5, picture.height // 24)
    bar = inferno(np.linspace(0, 1, picture.width))[None].repeat(thick, 0).round().astype(np.uint8)
    whole = Image.new("RGB", (picture.width, picture.height + gap + thick), "white")
    whole.paste(picture)
    whole.paste(Image.fromarray(bar), (0, picture.height + gap))
    return whole


def _outlined(base: Image.Image, boxes: np.ndarray) -> Image.Image:
    """With a bright line around each box [n, 4] (top, left, bottom, right), and a dark one around that."""
    picture = base.copy()
    draw = ImageDraw.Draw(picture)
    right_most, lowest = picture.width - 1, picture.height - 1
    for away, colour in ((2, "black"), (1, BOX)):
        for top, left, bottom, right in np.rint(boxes).astype(int).tolist():
            corner = (max(left - away, 0), max(top - away, 0))
            draw.rectangle(
                (*corner, min(right - 1 + away, right_most), min(bottom - 1 + away, lowest)), outline=colour
            )
    return picture


def _batch(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or not images.shape[-1]:
        raise ValueError(f"images {images.shape}: must be [n, h, w, c]")
    return images
