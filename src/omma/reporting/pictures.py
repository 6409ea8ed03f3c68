"""Grids of pictures, and how arrays become them: limits, enlarged pixels, colours of maps."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

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
