"""The types and ranges of the values that images hold, and how those of one type become another's."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Num

from omma.core.protocols import BadImage, Images, Preprocess
from omma.data.sources import mel
from omma.data.sources.decode import as_values

FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0}  # white, by type
NAMES = {"uint8": "8-bit", "uint16": "16-bit", "float32": "float"}
SAMPLE = 32  # images read to learn their values' range
PERCENTILES = (0.1, 99.9)  # the range of a sample: a few hot pixels don't count
_PIXELS = 4096  # of an image, at most
_TOLERANCE = 0.02  # by which floats in [0, 1] leave it after a resize

Ranges = Mapping[str, tuple[float, float]]  # by type: the .1 and 99.9 percentiles of a sample of the images


def thin(image: Num[np.ndarray, "h w c"]) -> Num[np.ndarray, "n c"]:
    """At most 4,096 evenly spread pixels of an image."""
    pixels = image.reshape(-1, image.shape[-1])
    return pixels[:: -(-len(pixels) // _PIXELS)]


def value_ranges(images: Iterable[Num[np.ndarray, "h w c"]]) -> dict[str, tuple[float, float]]:
    """For each type among the images, the range of its values."""
    values: dict[str, list[np.ndarray]] = defaultdict(list)
    for image in images:
        values[image.dtype.name].append(thin(image).ravel())
    ranges = {}
    for name, chunks in values.items():
        every = np.concatenate(chunks)
        if len(finite := every[np.isfinite(every)]):
            low, high = np.percentile(finite, PERCENTILES).tolist()
            ranges[name] = low, high
    return ranges


def ranges(images: Images) -> Ranges:
    """The value ranges of a collection, which are sampled and remembered where it does not know them yet."""
    known: Ranges | None = getattr(images, "ranges", None)
    if known is None:
        known = value_ranges(_readable(images))
        with contextlib.suppress(AttributeError):  # a class with slots: sampled again
            images.ranges = known  # type: ignore[attr-defined]
    return known


def array_ranges(values: Num[np.ndarray, "n h w c"]) -> Ranges:
    """The value ranges of an array of images."""

    def sample() -> Iterable[np.ndarray]:
        for i in _spread(len(values)):
            with contextlib.suppress(BadImage):
                yield as_values(values[i])

    return value_ranges(sample())


def _readable(images: Images) -> Iterable[np.ndarray]:
    for i in _spread(len(images)):
        with contextlib.suppress(BadImage):
            yield images.read(i, 1)


def _spread(n: int) -> list[int]:
    return np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(int)).tolist()


def full_scale(name: str, ranges: Ranges) -> float | None:
    """White for a type of a collection; None where the values are raw measurements.

    A type of integers tells. Floats are images in [0, 1] if those of the collection's sample are, otherwise
    raw: one rule for all of its images.
    """
    if name != "float32":
        return FULL_SCALE.get(name)
    low, high = ranges.get(name, (0.0, np.inf))
    return 1.0 if low >= -_TOLERANCE and high <= 1 + _TOLERANCE else None


def in_units(
    image: Num[np.ndarray, "h w c"], white: float | None, images: Images
) -> Num[np.ndarray, "h w c"]:
    """An image of the collection in values whose white is `white`: uint8 if it is 8-bit anyway, else float32.

    Unchanged where either side is raw (`white` None, or raw floats).
    """
    own = None
    if white is not None:
        own = FULL_SCALE.get(image.dtype.name) or full_scale(image.dtype.name, ranges(images))
    if own is not None and white is not None and own != white:
        return image.astype(np.float32) * np.float32(white / own)
    return image if image.dtype == np.uint8 else image.astype(np.float32, copy=False)


def read_in(images: Images, white: float | None, i: int, at_least: int | None = None) -> np.ndarray:
    """Image i in values whose white is `white` (`in_units`)."""
    return in_units(images.read(i, at_least), white, images)


def number(value: float) -> str:
    """A value for a person."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def input_notes(images: Images, preprocess: Preprocess) -> tuple[str, ...]:
    """What to know of how a collection's labels were read and its values are scaled."""
    return (*getattr(images, "notes", ()), *scaling_notes(images, preprocess))


def scaling_notes(images: Images, preprocess: Preprocess) -> tuple[str, ...]:
    """A line for each type whose values are scaled to the model's, or lie elsewhere than its range.

    And one where a model made for images is given sounds, or the other way round.
    """
    notes, sounds = [], getattr(images, "kind", "image") == "sound"
    if sounds != mel.of_sounds(preprocess):
        given, made = ("sounds", "images") if sounds else ("images", "sounds")
        notes.append(f"the model was made for {made}, and these are {given}: pretrain one on {given}")
    white, low, high = preprocess.full_scale, min(preprocess.low), max(preprocess.high)
    made_for = f"{number(low)} to {number(high)}" + (f" of {number(white)}" if white else "")
    for name, (least, most) in sorted(ranges(images).items()):
        own = full_scale(name, ranges(images))
        factor = white / own if white and own else 1.0
        values = f"{NAMES.get(name, name)} images hold values from {number(least)} to {number(most)}"
        values += f" of {number(own)}" if own else ""
        start, end = least * factor, most * factor
        slack = (high - low) / 2
        if start < low - slack or end > high + slack:
            notes.append(f"{values}, the model was made for {made_for}: what is beyond is cut off; {_REMEDY}")
        elif end - start < (high - low) / 3 and not sounds:
            seen = f", which come as {number(start)} to {number(end)}" if factor != 1 else ""
            notes.append(
                f"{values}{seen}, the model was made for {made_for}: they look flat to it; {_REMEDY}"
            )
        elif factor != 1:
            notes.append(f"{values}: scaled by {factor:.4g} to what the model was made for ({made_for})")
    return tuple(notes)


_REMEDY = "scale them, or pretrain on such images"
