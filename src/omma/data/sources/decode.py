"""Decode the bytes of one image file to an array [h, w, c], whatever the file's name."""

import contextlib
import io
import logging
import struct
from collections.abc import Iterator

import numpy as np
import simplejpeg
import tifffile
from PIL import Image

from omma.core.errors import line
from omma.core.protocols import BadImage

PIXELS = 2 * 89_478_485  # a larger image is refused as a decompression bomb, as Pillow does
PAGES = 64  # a TIFF with more grey pages is a film or a stack, not one image of so many channels
HEAD = 64  # bytes that `sniff` needs
ORIENTATION = 274  # the EXIF and TIFF tag


# ---------------------------------------------------------------- format
def _kind(head: bytes) -> str | None:
    """Pillow's name of the format, by the file's first bytes; None for a format that omma does not read."""
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    # text may begin with "BM" too; in a bitmap the size of the next header follows, one of these
    if head[:2] == b"BM" and head[14:18] in {struct.pack("<I", n) for n in (12, 40, 52, 56, 64, 108, 124)}:
        return "BMP"
    if head[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"PF") and head[2:3].isspace():
        return "PPM"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    if head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or head[:4] == b"\xff\x4f\xff\x51":
        return "JPEG2000"
    return None


def sniff(head: bytes) -> bool:
    """Whether these first bytes (64 are enough) look like an image that `decode` reads."""
    return _kind(head) is not None


def plain_jpeg(data: bytes) -> bool:
    """Whether this is a JPEG that all decoders read in the same way.

    8 bits, Huffman coded, grey or YCbCr, within the size limit and complete. `decode` handles the others
    (CMYK, RGB, truncated, with bytes after the end) case by case.
    """
    if _kind(data[:HEAD]) != "JPEG" or not data.endswith(b"\xff\xd9"):
        return False
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return False
    plain = any(
        marker in (0xC0, 0xC1, 0xC2) and content[:1] == b"\x08" for marker, content in _segments(data)
    )
    return plain and space in ("Gray", "YCbCr") and int(height) * int(width) <= PIXELS


# ---------------------------------------------------------------- decode
def decode(
    data: bytes, channels: int | None = None, at_least: int | None = None, name: str = ""
) -> np.ndarray:
    """Decode an image file to [h, w, c]: uint8, uint16, or float32 for files of any other type.

    The content decides the format. EXIF orientation is applied, alpha dropped, CMYK and palettes become
    RGB, animations give their first frame. 16-bit colour PNGs come as 8 bits (Pillow reads no more). A TIFF
    of 2 to 64 grey pages of one shape is one image with the pages as channels; of several colour pages, the
    first is read.

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
    kind = _kind(data[:HEAD])
    if kind is None:
        raise BadImage("not an image that omma reads")
    try:
        if kind == "JPEG":
            return _jpeg(data, channels, at_least)
        if kind == "TIFF":
            return _tiff(data)
        return _pillow(data, kind)
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


def _limit(height: int, width: int, layers: int = 1) -> None:
    if height * width * layers > PIXELS:
        raise BadImage(f"claims {width} x {height} pixels, over {PIXELS // 10**6} million")


def orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror [h, w, c] by its EXIF orientation 2 to 8; any other value leaves it unchanged."""
    if orientation in (5, 6, 7, 8):  # stored with rows and columns exchanged
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


# ---------------------------------------------------------------- JPEG
def _jpeg(data: bytes, channels: int | None, at_least: int | None) -> np.ndarray:
    height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    _limit(int(height), int(width))
    if space not in ("Gray", "YCbCr", "RGB"):
        return _pillow(data, "JPEG")  # CMYK and YCCK, often stored inverted
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
        return _pillow(data, "JPEG")
    return orient(image, _jpeg_orientation(data))


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment before the first scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # start of scan
            break
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length


def _jpeg_orientation(data: bytes) -> int:
    """The EXIF orientation; 1 without one."""
    for marker, content in _segments(data):
        if marker == 0xE1 and content[:6] == b"Exif\0\0":
            exif = Image.Exif()
            with contextlib.suppress(Exception):  # the image is readable even if its metadata is damaged
                exif.load(content)
                return int(exif.get(ORIENTATION, 1))
    return 1


# ---------------------------------------------------------------- Pillow
def _pillow(data: bytes, kind: str) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        _limit(image.height, image.width)
        image.load()
        return from_pillow(image)


def from_pillow(image: Image.Image) -> np.ndarray:
    """The pixels [h, w, c] of an image that Pillow has opened, as `decode` returns a file's."""
    pixels = image.convert("LA") if image.mode == "La" else image  # Pillow makes nothing else of La
    return orient(pillow_values(pixels), _orientation(image))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the image is readable even if its metadata is damaged
        return 1


def pillow_values(image: Image.Image) -> np.ndarray:
    """Its values [h, w, c]: 16- and 32-bit and float ones as they are, others as grey or RGB bytes."""
    if image.mode in ("F", "I"):
        return np.array(image)[..., None]
    if image.mode.startswith("I;16"):
        return np.array(image)[..., None].astype(np.uint16, copy=False)  # in this machine's order of bytes
    grey = image.mode in ("1", "L", "LA", "La")
    return np.array(image.convert("L"))[..., None] if grey else np.array(image.convert("RGB"))


# ---------------------------------------------------------------- TIFF
def _tiff(data: bytes) -> np.ndarray:
    # tifffile logs every oddity of a file, which would flood a run's output; BadImage's reason is enough
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        if not isinstance(page, tifffile.TiffPage):
            raise BadImage("damaged TIFF: no first page")
        _limit(page.imagelength, page.imagewidth)
        plain = page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
        if not plain or page.bitspersample not in (8, 16, 32, 64):
            return _tiff_by_pillow(data)  # palettes, CMYK, YCbCr, inverted, 1 and 12 bits
        # grey pages of one shape form one image; several colour pages are several images
        series = page if "S" in page.axes else tiff.series[0]
        if series.size > 4 * PIXELS:
            raise BadImage(f"claims {series.size // 10**6} million values")
        try:
            values, axes = series.asarray(), series.axes
        except (ValueError, ImportError) as error:
            if "imagecodecs" not in str(error):
                raise
            return _tiff_by_pillow(data)  # LZW, JPEG and others, for which tifffile needs an optional package
        image = _channels_last(values, axes)
        alpha = {int(sample) for sample in page.extrasamples} & {1, 2}  # associated or not
        if alpha and image.shape[-1] in (2, 4):
            image = image[..., :-1]
        tag = page.tags.get(ORIENTATION)
        return orient(image, tag.value if tag is not None else 1)


def _channels_last(values: np.ndarray, axes: str) -> np.ndarray:
    """[h, w, c] from TIFF axes such as YX, YXS, SYX, CYX, QYX."""
    keep = [i for i, (axis, size) in enumerate(zip(axes, values.shape)) if size > 1 or axis in "YX"]
    axes, values = "".join(axes[i] for i in keep), values.reshape([values.shape[i] for i in keep])
    if values.ndim == 2:
        return values[..., None]
    if values.ndim != 3:
        raise BadImage(f"TIFF of {values.ndim} axes ({axes}); store one image a file")
    if not axes.endswith("S") and values.shape[-1] <= PAGES < values.shape[0]:
        return values  # [h, w, c] written as h pages of w x c, as tifffile does unless told otherwise
    if not axes.endswith("S"):
        values = np.moveaxis(values, 0, -1)
    if values.shape[-1] > PAGES:
        raise BadImage(f"TIFF of {values.shape[-1]} pages; store one image a file")
    return values


def _tiff_by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        frames = getattr(image, "n_frames", 1)
        _limit(image.height, image.width, min(frames, PAGES))
        image.load()
        orientation, layers = _orientation(image), [pillow_values(image)]
        if 1 < frames <= PAGES and layers[0].shape[-1] == 1:
            for frame in range(1, frames):
                image.seek(frame)
                _limit(image.height, image.width, frames)
                layers.append(pillow_values(image))
            if any(layer.shape != layers[0].shape for layer in layers):
                layers = layers[:1]  # an image and its thumbnails
        return orient(np.concatenate(layers, axis=-1), orientation)
