"""PNGs of 16 bits a value with several channels, of which Pillow gives the upper 8 bits alone.

Chunks, filters and interlacing as in the standard [PNG, third edition, 5, 8 and 9].
"""

import struct
import zlib

import numpy as np
from jaxtyping import UInt8, UInt16

from omma.core.compiled import compiles
from omma.core.errors import install_command
from omma.core.protocols import BadImage, Inaccessible
from omma.data.sources.decode_pillow import exif_orientation, limit, orient, png_chunks

_CHANNELS = {2: 3, 4: 2, 6: 4}  # by colour type: RGB, grey and alpha, RGB and alpha
# first row, first column, and the steps of rows and columns, of the seven passes of an interlaced image
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png16(data: bytes) -> UInt16[np.ndarray, "h w c"] | None:
    """RGB or grey values without alpha, upright; None for a PNG of any other kind."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if bits != 16 or colour not in _CHANNELS:
        return None
    channels = _CHANNELS[colour]
    limit(height, width, 7 * channels, "PNG")
    if not width or not height:
        raise BadImage("no pixels")
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    shapes = [(-(-(height - top) // dy), -(-(width - left) // dx)) for top, left, dy, dx in passes]
    # an empty pass has no rows
    sizes = [h * (1 + 2 * channels * w) if h > 0 and w > 0 else 0 for h, w in shapes]
    raw = np.frombuffer(bytearray(_inflated(data, sum(sizes))), np.uint8)
    out, at = np.empty((height, width, channels), np.uint16), 0
    for (top, left, dy, dx), (h, w), size in zip(passes, shapes, sizes):
        if size:
            rows = raw[at : at + size].reshape(h, -1)
            _unfilter(rows, 2 * channels)
            out[top::dy, left::dx] = np.ascontiguousarray(rows[:, 1:]).view(">u2").reshape(h, w, channels)
            at += size
    return orient(out[..., : 1 if channels == 2 else 3], _orientation(data))


def _inflated(data: bytes, size: int) -> bytes:
    """What the IDAT chunks hold, `size` bytes; BadImage where they hold fewer or are damaged."""
    stream = []
    for name, start, end in png_chunks(data):
        if name == b"IDAT":
            body = data[start + 8 : end - 4]
            if data[end - 4 : end] != struct.pack(">I", zlib.crc32(name + body)):
                raise BadImage("damaged PNG: wrong checksum or cut off")
            stream.append(body)
    raw = zlib.decompressobj().decompress(b"".join(stream), size)
    if len(raw) < size:
        raise BadImage("damaged PNG: truncated")
    return raw


def _orientation(data: bytes) -> int:
    for name, start, end in png_chunks(data):
        if name == b"eXIf":
            return exif_orientation(b"Exif\0\0" + data[start + 8 : end - 4])
    return 1


def _unfilter(rows: UInt8[np.ndarray, "h n"], step: int) -> None:
    """Undo the filters, in place; each row begins with its filter's number. step: bytes of a pixel."""
    if rows[:, 0].max() > 4:
        raise BadImage("damaged PNG: unknown filter")
    if not compiles():
        raise Inaccessible(f"a PNG of 16 bits needs Numba: {install_command('fast')} brings it")
    from omma.data.pixels.png_numba import unfilter  # Numba takes half a second to import

    unfilter(rows, step)
