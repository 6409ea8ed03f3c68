"""Copies of images as they come about by use: compressed, grey, cropped, mirrored, turned, resized.

Detectors are calibrated on copies of the user's own images, because how far a copy moves, and how near two
different images lie, depends on the images as much as on the detector.
"""

import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from omma.core.protocols import BadImage, Images

CROPS = (0.9, 0.8, 0.7, 0.6, 0.5)  # shares of the area that are kept
TURN = 5.0  # degrees
SIDE = 512  # copies are made of images whose shorter side is at least this where they are larger

Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Copy(NamedTuple):
    """A copy of image `of` of a collection."""

    of: int
    kind: str
    pixels: np.ndarray  # [h, w, c], of the image's type


def kinds(dtype: np.dtype, channels: int) -> dict[str, Draw]:
    """What makes copies of images of this type, by name; JPEG takes 8 bits and 1 or 3 channels."""
    made: dict[str, Draw] = {}
    if dtype == np.uint8 and channels in (1, 3):
        made["JPEG at quality 10"] = jpeg
    if channels == 3:
        made["grey"] = grey
    for kept in CROPS:
        made[f"crop of {100 * (1 - kept):.0f} %"] = lambda image, rng, kept=kept: crop(image, rng, kept)
    return made | {"mirrored": mirrored, f"turned by {TURN:.0f} degrees": turned, "resized": resized}


def made(images: Images, count: int, seed: int) -> Iterator[Copy]:
    """Copies of each kind of `count` images drawn from the collection (of all where it has fewer).

    Images that cannot be read, or show nothing but one value, are passed over.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(images))
    done = 0
    for index in order.tolist():
        if done == count:
            return
        try:
            image = images.read(index, SIDE)
        except BadImage:
            continue
        if image.size == 0 or image.min() == image.max():
            continue
        done += 1
        rng = np.random.default_rng([seed, 1, index])
        for kind, draw in kinds(image.dtype, image.shape[-1]).items():
            yield Copy(index, kind, np.ascontiguousarray(draw(image, rng)))


# ---------------------------------------------------------------- kinds
def jpeg(image: np.ndarray, rng: np.random.Generator, quality: int = 10) -> np.ndarray:
    """The image after JPEG compression at a quality of 10 of 100."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).reshape(image.shape)


def grey(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Luminance (ITU-R 601) in all three channels."""
    luminance = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    return _as_type(luminance[..., None].repeat(3, axis=-1), image.dtype)


def crop(image: np.ndarray, rng: np.random.Generator, kept: float) -> np.ndarray:
    """A window of the image's aspect with this share of its area, placed at random."""
    height, width = (max(1, round(side * kept**0.5)) for side in image.shape[:2])
    top = rng.integers(image.shape[0] - height + 1)
    left = rng.integers(image.shape[1] - width + 1)
    return image[top : top + height, left : left + width]


def mirrored(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Left and right exchanged."""
    return image[:, ::-1]


def turned(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by TURN degrees either way; the corners that come into view are black."""
    angle = TURN * rng.choice((-1, 1))
    return _by_channel(image, lambda plane: plane.rotate(angle, Image.Resampling.BILINEAR))


def resized(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reduced to a side drawn from 30 to 70 %."""
    scale = rng.uniform(0.3, 0.7)
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return _by_channel(image, lambda plane: plane.resize((width, height), Image.Resampling.BICUBIC))


def _by_channel(image: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Each channel changed as a picture of floats."""
    planes = [
        np.asarray(change(Image.fromarray(np.ascontiguousarray(image[..., k], np.float32))))
        for k in range(image.shape[-1])
    ]
    return _as_type(np.stack(planes, axis=-1), image.dtype)


def _as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind not in "iu":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return values.round().clip(limits.min, limits.max).astype(dtype)
