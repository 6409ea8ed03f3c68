"""Images that Pillow decodes, within a limit on memory, and what every format's decoder needs."""

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from PIL import Image

from omma.core.protocols import BadImage

PIXELS = 2 * 89_478_485  # a larger image is refused as a decompression bomb, as Pillow does
MEMORY = 800 << 20  # bytes that decoding one image may take
ORIENTATION = 274  # the EXIF and TIFF tag
# Bytes a pixel that decoding takes at most, measured: the decoder's own, Pillow's and the array's
COST = {
    "AVIF": 18,
    "BMP": 9,
    "GIF": 9,
    "JPEG": 12,
    "JPEG2000": 26,
    "PNG": 9,
    "PPM": 12,
    "TIFF": 16,
    "WEBP": 24,
}
_ROWS = 1 << 20  # pixels that are converted at once
_most_pixels = ContextVar("most_pixels", default=PIXELS)


@contextmanager
def at_most(pixels: int) -> Iterator[None]:
    """Refuse, in this thread, images that claim more pixels than this, too."""
    token = _most_pixels.set(min(pixels, PIXELS))
    try:
        yield
    finally:
        _most_pixels.reset(token)


def limit(height: int, width: int, cost: float = 1, what: str = "") -> None:
    """Raise BadImage for an image that claims no or too many pixels, or whose decoding takes too much memory.

    cost: bytes a pixel. what: the format, for the message.
    """
    if height < 1 or width < 1:
        raise BadImage(f"claims {width} x {height} pixels")
    most = min(_most_pixels.get(), int(MEMORY / cost))
    if height * width > most:
        kind = f"{what} of " if what else ""
        raise BadImage(f"claims {kind}{width} x {height} pixels, over {most // 10**6} million")


def orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror [h, w, c] by its EXIF orientation 2 to 8; any other value leaves it unchanged."""
    if orientation in (5, 6, 7, 8):  # stored with rows and columns exchanged
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def by_pillow(data: bytes, kind: str) -> np.ndarray:
    """[h, w, c], upright, of a file of this kind (Pillow's name); BadImage if it takes too much memory."""
    if kind == "PNG":
        data = _without_metadata(data)
    if kind == "WEBP":
        limit(*_webp_size(data), COST[kind], "WebP")  # Pillow makes room as soon as it opens one
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        limit(image.height, image.width, COST[kind], kind)
        image.load()
        return from_pillow(image)


def from_pillow(image: Image.Image) -> np.ndarray:
    """[h, w, c], upright, of an image that Pillow has opened."""
    pixels = image.convert("LA") if image.mode == "La" else image  # Pillow makes nothing else of La
    return orient(pillow_values(pixels), orientation_of(image.getexif))


def orientation_of(exif: Callable[[], Image.Exif]) -> int:
    """The orientation in EXIF data, read by `exif`; 1 where it is missing or damaged."""
    try:
        value = exif().get(ORIENTATION, 1)
        return int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # the image is readable even if its metadata is damaged
        return 1


def exif_orientation(data: bytes) -> int:
    """The orientation in a block of EXIF data that begins with "Exif"."""

    def exif() -> Image.Exif:
        tags = Image.Exif()
        tags.load(data)
        return tags

    return orientation_of(exif)


def pillow_values(image: Image.Image) -> np.ndarray:
    """A picture's values [h, w, c]: 16-bit, 32-bit and float ones unchanged, others as grey or RGB bytes."""
    if image.mode in ("F", "I"):
        values = np.array(image)[..., None]
        # what Pillow makes of a 16-bit PGM
        sixteen = image.format == "PPM" and image.mode == "I"
        return values.astype(np.uint16) if sixteen else values
    if image.mode.startswith("I;16"):
        return np.array(image)[..., None].astype(np.uint16, copy=False)  # in this machine's order of bytes
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    width, height = image.size
    out = np.empty((height, width, len(mode)), np.uint8)
    rows = max(1, _ROWS // max(width, 1))  # in parts, since Pillow's conversions copy several times
    for top in range(0, height, rows):
        part = image.crop((0, top, width, min(top + rows, height)))
        part = part if part.mode == mode else part.convert(mode)
        out[top : top + rows] = np.asarray(part).reshape(-1, width, len(mode))
    return out


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk of a PNG, up to its last or the first that is damaged."""
    at = 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at, at + 12 + length
        if name == b"IEND" or not name.isalpha():
            break
        at += 12 + length


def _without_metadata(data: bytes) -> bytes:
    """A PNG without the chunks that pixels don't need: texts, profiles and the like may be of any size."""
    keep = [data[:8]]
    for name, start, end in png_chunks(data):
        needed = name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
        if needed or (name == b"eXIf" and end - start < 1 << 16):
            keep.append(data[start:end])
        elif not name.isalpha():  # damaged: Pillow says how
            keep.append(data[start:])
    return b"".join(keep)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Height and width of a WebP file."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return height, width


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment of a JPEG before the first scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # any number of them may stand before a marker
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these have no content
            at += 2
            continue
        if marker == 0xDA:  # start of scan
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length
