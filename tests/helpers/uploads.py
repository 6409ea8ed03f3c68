"""Image files as clients send them."""

import io

import numpy as np
from PIL import Image


def picture(seed: int = 0, kind: str = "PNG", height: int = 40, width: int = 50) -> bytes:
    """The bytes of an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), kind)
    return file.getvalue()
