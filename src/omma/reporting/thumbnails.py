"""Small pictures of a collection's images, as they are shown on pages."""

import io

import numpy as np
from PIL import Image

from omma.core.protocols import BadImage, Images
from omma.reporting.pictures import limits

MISSING = (128, 128, 128)  # the colour of an image that cannot be read


def thumbnail(images: Images, index: int, side: int) -> Image.Image:
    """The image in RGB, its longer side `side` pixels (never enlarged); grey where it cannot be read."""
    try:
        pixels = images.read(index, side)
    except BadImage:
        return Image.new("RGB", (side, side), MISSING)
    return reduced(pixels, side)


def reduced(pixels: np.ndarray, side: int) -> Image.Image:
    """An image [h, w, c] of any type as RGB; its first three channels, one is grey, two lack blue."""
    shown = pixels[..., :3]
    if shown.dtype != np.uint8:
        low, high = limits(pixels)
        values = (shown.astype(np.float64) - low) / (high - low)
        shown = (255 * np.nan_to_num(values, nan=0.5).clip(0, 1)).round().astype(np.uint8)
    if shown.shape[-1] == 1:
        shown = shown.repeat(3, axis=-1)
    elif shown.shape[-1] == 2:
        shown = np.concatenate([shown, np.zeros_like(shown[..., :1])], axis=-1)
    picture = Image.fromarray(np.ascontiguousarray(shown))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def jpeg(picture: Image.Image, quality: int = 75) -> bytes:
    """The picture as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
