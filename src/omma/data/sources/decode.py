"""Decode the bytes of one image file to an array [h, w, c], whatever the file's name."""

import re

import numpy as np
import simplejpeg
from PIL import Image

from omma.core.errors import line
from omma.core.protocols import BadImage
from omma.data.sources.decode_dicom import dicom
from omma.data.sources.decode_pillow import (
    PIXELS,
    by_pillow,
    exif_orientation,
    jpeg_segments,
    limit,
    orient,
)
from omma.data.sources.decode_png16 import png16
from omma.data.sources.decode_tiff import tiff
from omma.data.sources.formats import HEAD as HEAD
from omma.data.sources.formats import kind as kind_of
from omma.data.sources.formats import sniff as sniff
from omma.data.sources.formats import unread

_FRAMES = {0xC0, 0xC1, 0xC2}  # of JPEGs: baseline, extended, progressive, Huffman coded
_UNREAD_FRAMES = {0xC3: "lossless", 0xC7: "lossless", 0xCB: "lossless", 0xCF: "lossless", 0xF7: "JPEG-LS"}
_SCAN = re.compile(rb"\xff+\xda")
_WORK = 4e9  # pixels times scans of a JPEG: some 10 s of decoding


def plain_jpeg(data: bytes) -> bool:
    """Whether this is a JPEG that all decoders read in the same way.

    8 bits, Huffman coded, grey or YCbCr, within the size limit and complete. `decode` handles the others
    (CMYK, RGB, truncated, with bytes after the end) case by case.
    """
    if kind_of(data[:HEAD]) != "JPEG" or not data.endswith(b"\xff\xd9"):
        return False
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: a colour space that it does not know
        return False
    plain = any(marker in _FRAMES and content[:1] == b"\x08" for marker, content in jpeg_segments(data))
    return plain and space in ("Gray", "YCbCr") and int(height) * int(width) <= PIXELS


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG as its header has them, before EXIF turns it; None for any other file."""
    if kind_of(data[:HEAD]) != "JPEG":
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return None
    return int(height), int(width)


# ---------------------------------------------------------------- decode
def decode(
    data: bytes, channels: int | None = None, at_least: int | None = None, name: str = ""
) -> np.ndarray:
    """Decode an image file to [h, w, c]: uint8, uint16, or float32 for files of any other type.

    The content decides the format. EXIF orientation is applied, alpha dropped, CMYK and palettes become
    RGB, animations give their first frame. 16-bit colour PNGs come as 8 bits (Pillow reads no more). A TIFF
    of 2 to 64 grey pages of one shape is one image with the pages as channels; of several colour pages, the
    first is read. DICOM needs pydicom (the extra `dicom`).

    channels: 3 turns grey into RGB, 1 turns RGB into grey; any other mismatch raises BadImage.
    at_least: required pixels of the shorter side; a larger JPEG is decoded at 1/2 to 1/8 scale.
    name: prefix of a BadImage's message.
    """
    try:
        return as_channels(as_values(_decode(data, channels, at_least)), channels)
    except BadImage as error:
        if name:
            raise BadImage(f"{name}: {error}") from None
        raise


def _decode(data: bytes, channels: int | None, at_least: int | None) -> np.ndarray:
    if not data:
        raise BadImage("empty file")
    kind = kind_of(data[:HEAD])
    if kind is None:
        raise BadImage(unread(data[:256]) or "not an image that omma reads")
    try:
        if kind == "JPEG":
            return _jpeg(data, channels, at_least)
        if kind == "TIFF":
            return tiff(data)
        if kind == "DICOM":
            return dicom(data)
        deep = png16(data) if kind == "PNG" else None
        return by_pillow(data, kind) if deep is None else deep
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"over {PIXELS // 10**6} million pixels") from None
    except Exception as error:  # hostile bytes make decoders raise anything, from IndexError to zlib.error
        raise BadImage(f"damaged {kind}: {line(error)}") from None


def as_values(image: np.ndarray) -> np.ndarray:
    """uint8 and uint16 unchanged, other numbers as float32; BadImage for empty or non-finite images."""
    if 0 in image.shape:
        raise BadImage("no pixels")
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind == "u" and image.dtype.itemsize == 2:
        return image.astype(np.uint16, copy=False)  # in this machine's order of bytes
    if image.dtype == bool:
        return image.astype(np.uint8) * np.uint8(255)
    if image.dtype.kind not in "uif":
        raise BadImage(f"values of type {image.dtype}")
    image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise BadImage("NaN or infinite values")
    return image


def as_channels(image: np.ndarray, channels: int | None) -> np.ndarray:
    """Contiguous [h, w, channels]; converts between grey and RGB, raises BadImage for other mismatches."""
    actual = image.shape[-1]
    if channels == 3 and actual == 1:
        image = np.repeat(image, 3, axis=-1)
    elif channels == 1 and actual == 3:
        grey = image @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow and JPEG
        image = (grey if image.dtype == np.float32 else grey.round().astype(image.dtype))[..., None]
    elif channels is not None and actual != channels:
        raise BadImage(f"{actual} channels where the collection has {channels}")
    return np.ascontiguousarray(image)


# ---------------------------------------------------------------- JPEG
def _jpeg(data: bytes, channels: int | None, at_least: int | None) -> np.ndarray:
    orientation = _jpeg_check(data)
    height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    limit(int(height), int(width))
    if space not in ("Gray", "YCbCr", "RGB"):
        return by_pillow(data, "JPEG")  # CMYK and YCCK, often stored inverted
    grey = channels == 1 or (space == "Gray" and channels is None)
    try:
        image = simplejpeg.decode_jpeg(
            data,
            "GRAY" if grey else "RGB",
            min_height=at_least or 0,
            min_width=at_least or 0,
            # scales between 1/2 and 1 have no vector code: 7/8 takes twice as long as 1
            min_factor=2 if at_least else 1,
        )
    except ValueError as error:
        # strict decoding detects truncation, but also rejects harmless stray bytes
        if "extraneous bytes" not in str(error):
            raise
        return by_pillow(data, "JPEG")
    return orient(image, orientation)


def _jpeg_check(data: bytes) -> int:
    """The EXIF orientation; BadImage for kinds that are not read, or that take too much memory or time."""
    orientation = 1
    for marker, content in jpeg_segments(data):
        if marker == 0xE1 and content[:6] == b"Exif\0\0" and orientation == 1:
            orientation = exif_orientation(content)
        elif marker in _UNREAD_FRAMES or (marker in _FRAMES and content[:1] != b"\x08"):
            name = _UNREAD_FRAMES.get(marker, f"of {content[0] if content else 0} bits")
            raise BadImage(f"JPEG ({name}), which omma does not read: convert it to PNG")
        elif marker == 0xC2 and len(content) > 5:  # progressive: all coefficients are in memory
            height, width = (int.from_bytes(content[at : at + 2], "big") for at in (1, 3))
            limit(height, width, 3 + 2 * content[5], "progressive JPEG")
            if height * width * len(_SCAN.findall(data)) > _WORK:
                raise BadImage("a progressive JPEG of too many scans")
    return orientation
