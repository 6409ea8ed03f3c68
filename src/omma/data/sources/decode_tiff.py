"""TIFF: values of any type and number of channels, the same whatever the compression, predictor and layout.

Strips and tiles are decompressed here, each into as many bytes as its shape needs and no more. tifffile reads
the tags, and files without compression; Pillow reads palettes, CMYK, YCbCr and images of less than 8 bits.
"""

import io
import logging
import lzma
import math
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image

from omma.core.errors import install_command
from omma.core.protocols import BadImage
from omma.data.sources.decode_pillow import COST, MEMORY, ORIENTATION, limit, orient, pillow_values

PAGES = 64  # a file with more grey pages is a film or a stack, not one image of so many channels
_NONE, _DEFLATE, _LZMA = 1, (8, 32946), 34925
_LIBTIFF = (5, 32773, 50000)  # LZW, PackBits, Zstandard: libtiff's decoders, through Pillow
_SEGMENTS = 50_000  # strips or tiles of a page: some seconds of decompressing
_PREDICTED = (*_DEFLATE, _LZMA, 5, 50000)  # compressions that a predictor may precede; others ignore the tag
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _RAW = 0, 1, 2, (32803, 34892)
_REDUCED = 1  # a bit of NewSubfileType: a smaller version of another image of the file


def tiff(data: bytes) -> np.ndarray:
    """[h, w, c], upright, of the file's image at full resolution."""
    # tifffile logs every oddity of a file, which would flood a run's output; BadImage's reason is enough
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    with _opened(data) as file:
        page = _full_resolution(file)
        if page.offset != _first(file).offset:
            data = _beginning_at(data, page.offset)
            file.close()
            file = _opened(data)
            page = _first(file)
        with file:
            return _image(data, file, page)


def _opened(data: bytes) -> tifffile.TiffFile:
    return tifffile.TiffFile(io.BytesIO(data), _multifile=False)  # OME files may name others


def _first(file: tifffile.TiffFile) -> tifffile.TiffPage:
    page = file.pages.first
    if not isinstance(page, tifffile.TiffPage):
        raise BadImage("damaged TIFF: no first page")
    return page


def _full_resolution(file: tifffile.TiffFile) -> tifffile.TiffPage:
    """The first page; if that is a preview, the largest one that is not, among pages and their subpages."""
    first = _first(file)
    if not _reduced(first):
        return first
    pages: list[tifffile.TiffPage] = []
    for page, _ in zip(file.pages, range(PAGES)):
        page = page.aspage()
        pages += [page, *(sub.aspage() for sub, _ in zip(page.pages or (), range(PAGES)))]
    full = [page for page in pages if not _reduced(page)]
    return max(full, key=lambda page: page.imagelength * page.imagewidth, default=first)


def _reduced(page: tifffile.TiffPage) -> bool:
    old = page.tags.get(255)  # SubfileType, before NewSubfileType
    return bool(int(page.subfiletype) & _REDUCED) or (old is not None and old.value == 2)


def _beginning_at(data: bytes, offset: int) -> bytes:
    """The file with the page at `offset` as its first."""
    order = "<" if data[:2] == b"II" else ">"
    at, size = (8, "Q") if struct.unpack_from(order + "H", data, 2)[0] == 43 else (4, "I")
    start = struct.pack(order + size, offset)
    return data[:at] + start + data[at + len(start) :]


def _image(data: bytes, file: tifffile.TiffFile, page: tifffile.TiffPage) -> np.ndarray:
    limit(page.imagelength, page.imagewidth)
    if page.photometric in _RAW:
        raise BadImage("a camera's raw file: convert it to TIFF, JPEG or PNG")
    plain = page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
    if not plain or page.bitspersample < 8 or page.imagedepth > 1:
        return _by_pillow(data, page)
    known = (_NONE, *_DEFLATE, _LZMA, *_LIBTIFF)
    if page.compression not in known and page.bitspersample == 8 and page.compression != 34887:
        return _by_pillow(data, page)  # JPEG and WebP
    # grey pages of one shape form one image; several colour pages are several images
    series = page if "S" in page.axes else file.series[0]
    planes = _planes(series)
    size = (2 if page.dtype is None else page.dtype.itemsize) * (
        series.size if planes is None else len(planes) * page.size
    )
    if size > MEMORY // 3:
        raise BadImage(f"claims {size / 1e9:.1f} GB of values, over {MEMORY // 3 / 1e9:.1f} GB")
    axes = series.axes
    if planes is not None:
        if page.compression not in known:
            raise BadImage(f"TIFF of axes {axes}, compressed: save it without compression, or by Deflate")
        values, axes = np.stack([_values(data, page, each) for each in planes]), "CYX"
    elif page.compression == _NONE and page.predictor == 1 and not page.bitspersample % 8:
        values = series.asarray()
    elif page.compression in known:
        pages = [page] if series is page else [each for each in series.pages or () if each is not None]
        values = np.stack([_values(data, page, each) for each in pages]).reshape(series.shape)
    else:
        values = _by_imagecodecs(series, page)
    if page.photometric == _WHITE_IS_ZERO and values.dtype.kind == "u":
        values = (1 << page.bitspersample) - 1 - values
    image = _channels_last(values, axes)
    alpha = {int(sample) for sample in page.extrasamples} & {1, 2}  # associated or not
    if alpha and image.shape[-1] in (2, 4):
        image = image[..., :-1]
    return orient(image, _orientation(page))


def _planes(
    series: tifffile.TiffPage | tifffile.TiffPageSeries,
) -> list[tifffile.TiffPage | tifffile.TiffFrame] | None:
    """The channels of a stack of several axes (OME, ImageJ), at its middle depth and first time; else None.

    With one axis beside height and width, whichever it is, its pages are the channels.
    """
    if isinstance(series, tifffile.TiffPage) or not series.axes.endswith("YX"):
        return None
    axes, sizes = series.axes[:-2], series.shape[:-2]
    if sum(size > 1 for size in sizes) < 2 or len(series.pages) != math.prod(sizes):
        return None
    index = tuple(
        slice(None) if axis == "C" else size // 2 if axis == "Z" else 0 for axis, size in zip(axes, sizes)
    )
    rows = np.atleast_1d(np.arange(len(series.pages)).reshape(sizes)[index]).ravel()
    if len(rows) > PAGES:
        raise BadImage(f"TIFF of {len(rows)} channels; store at most {PAGES}")
    pages = [series.pages[int(row)] for row in rows]
    if any(page is None for page in pages):
        raise BadImage("damaged TIFF: a plane of its stack is missing")
    return [page for page in pages if page is not None]


def _orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get(ORIENTATION)
    value = tag.value if tag is not None else 1
    return int(value[0] if isinstance(value, tuple) else value)


def _channels_last(values: np.ndarray, axes: str) -> np.ndarray:
    """[h, w, c] from TIFF axes such as YX, YXS, SYX, CYX, QYX."""
    keep = [i for i, (axis, size) in enumerate(zip(axes, values.shape)) if size > 1 or axis in "YX"]
    axes, values = "".join(axes[i] for i in keep), values.reshape([values.shape[i] for i in keep])
    if values.ndim == 2:
        return values[..., None]
    if values.ndim != 3:
        raise BadImage(f"TIFF of {values.ndim} axes ({axes}); store one image a file")
    if not axes.endswith("S") and values.shape[-1] <= PAGES < values.shape[0]:
        return values  # [h, w, c] written as h pages of w x c, as tifffile does by default
    if not axes.endswith("S"):
        values = np.moveaxis(values, 0, -1)
    if values.shape[-1] > PAGES:
        raise BadImage(f"TIFF of {values.shape[-1]} pages; store one image a file")
    return values


# ---------------------------------------------------------------- strips and tiles
def _values(
    data: bytes, layout: tifffile.TiffPage, page: tifffile.TiffPage | tifffile.TiffFrame
) -> np.ndarray:
    """The values of a page in the shape of `layout`, the first page of its series.

    Strips and tiles [height, width, samples] are placed into planes [p, H, W, samples] [TIFF 6.0, 3 and 15].
    """
    height, width = layout.imagelength, layout.imagewidth
    tall, wide = _chunk(layout)
    separate = layout.planarconfig == 2 and layout.samplesperpixel > 1
    samples, planes = (1, layout.samplesperpixel) if separate else (layout.samplesperpixel, 1)
    dtype = np.dtype(np.uint16) if layout.dtype is None else layout.dtype
    limit(tall, wide, 4 * samples * dtype.itemsize, "tiles")
    rows, columns = math.ceil(height / tall), math.ceil(width / wide)
    if planes * rows * columns > _SEGMENTS:
        raise BadImage(f"TIFF of {planes * rows * columns:,} strips or tiles, over {_SEGMENTS:,}")
    out = np.zeros((planes, height, width, samples), dtype)
    places = np.ndindex(planes, rows, columns)
    for (plane, row, column), offset, count in zip(places, page.dataoffsets, page.databytecounts):
        if not count:
            continue  # of a sparse file: zeros
        top, left = row * tall, column * wide
        block_height = tall if layout.is_tiled else min(tall, height - top)
        block = _block(data[offset : offset + count], layout, block_height, wide, samples)
        part = out[plane, top : top + tall, left : left + wide]
        part[:] = block[: part.shape[0], : part.shape[1]]
    if len(page.dataoffsets) < planes * rows * columns:
        raise BadImage("damaged TIFF: strips or tiles are missing")
    return out.reshape(layout.shape) if separate or layout.planarconfig == 1 else out


def _chunk(page: tifffile.TiffPage) -> tuple[int, int]:
    """Height and width of strips or tiles."""
    if not page.is_tiled:
        return max(1, min(page.rowsperstrip, page.imagelength)), page.imagewidth
    if not page.tilelength or not page.tilewidth:
        raise BadImage("damaged TIFF: tiles without pixels")
    return page.tilelength, page.tilewidth


def _block(data: bytes, page: tifffile.TiffPage, height: int, width: int, samples: int) -> np.ndarray:
    """The values [height, width, samples] of one strip or tile."""
    bits = page.bitspersample
    row_bytes = math.ceil(width * samples * bits / 8)
    raw = np.frombuffer(_decompressed(data, page, height, row_bytes), np.uint8).reshape(height, row_bytes)
    if bits % 8:
        return _unpacked(raw, bits)[:, : width * samples].reshape(height, width, samples)
    assert page.dtype is not None
    stored = page.dtype.newbyteorder(page.parent.byteorder)
    predictor = page.predictor if page.compression in _PREDICTED else 1
    if predictor == 3:
        raw = raw.reshape(height, -1, samples).cumsum(1, dtype=np.uint8)  # the bytes' differences, then ...
        planes = raw.reshape(height, stored.itemsize, width * samples)  # ... most significant bytes first
        values = np.ascontiguousarray(planes.swapaxes(1, 2)).view(stored.newbyteorder(">"))
        return values.reshape(height, width, samples)
    values = raw.view(stored).reshape(height, width, samples)
    if predictor == 2:
        unsigned = values.view(f"{stored.byteorder}u{stored.itemsize}").astype(f"u{stored.itemsize}")
        return unsigned.cumsum(1, dtype=unsigned.dtype).view(stored.newbyteorder("="))
    if predictor != 1:
        raise BadImage(f"TIFF with predictor {int(predictor)}: save it without")
    return values


def _unpacked(raw: np.ndarray, bits: int) -> np.ndarray:
    """uint16 values of 9 to 15 bits, the most significant first, from rows of bytes."""
    if not 8 < bits < 16:
        raise BadImage(f"TIFF of {bits} bits a value: save it with 8, 16 or 32")
    whole = raw.shape[1] * 8 // bits * bits
    digits = np.unpackbits(raw, axis=1)[:, :whole].reshape(len(raw), -1, bits)
    values = np.zeros(digits.shape[:2], np.uint16)
    for k in range(bits):
        values = values << 1 | digits[..., k]
    return values


def _decompressed(data: bytes, page: tifffile.TiffPage, height: int, row_bytes: int) -> bytes:
    """The bytes of one strip or tile, no more than its shape needs; BadImage if they are fewer."""
    size = height * row_bytes
    if page.compression in _DEFLATE:
        raw = zlib.decompressobj().decompress(data, size)
    elif page.compression == _LZMA:
        raw = lzma.LZMADecompressor(memlimit=MEMORY // 4).decompress(data, size)
    elif page.compression in _LIBTIFF:
        raw = _by_libtiff(data, int(page.compression), int(page.fillorder), height, row_bytes)
    else:
        raw = data[:size]
    if len(raw) < size:
        raise BadImage("damaged TIFF: a strip or tile is truncated")
    return raw


def _by_libtiff(data: bytes, compression: int, fill_order: int, height: int, row_bytes: int) -> bytes:
    """Decompress bytes as if they were one strip of an 8-bit grey image, whose values are these bytes."""
    tags = {256: row_bytes, 257: height, 258: 8, 259: compression, 262: 1, 266: fill_order, 273: 0}
    tags |= {277: 1, 278: height, 279: len(data)}
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = start
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data
    with Image.open(io.BytesIO(file), formats=["TIFF"]) as image:
        return image.tobytes()


def _by_imagecodecs(
    series: tifffile.TiffPage | tifffile.TiffPageSeries, page: tifffile.TiffPage
) -> np.ndarray:
    """For compressions that need an optional package."""
    limit(*_chunk(page), COST["TIFF"], "tiles")
    try:
        return series.asarray(maxworkers=1)
    except (ValueError, ImportError) as error:
        if "imagecodecs" not in str(error):
            raise
        name = getattr(page.compression, "name", page.compression)
        raise BadImage(
            f"TIFF compressed by {name}: `{install_command(package='imagecodecs')}`, or save it otherwise"
        ) from None


# ---------------------------------------------------------------- by Pillow
def _by_pillow(data: bytes, page: tifffile.TiffPage) -> np.ndarray:
    limit(*_chunk(page), COST["TIFF"], "tiles")
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        frames = getattr(image, "n_frames", 1)
        limit(image.height, image.width * min(frames, PAGES), COST["TIFF"])
        image.load()
        layers = [pillow_values(image)]
        if 1 < frames <= PAGES and layers[0].shape[-1] == 1:
            for frame in range(1, frames):
                image.seek(frame)
                limit(image.height, image.width * frames, COST["TIFF"])
                layers.append(pillow_values(image))
            if any(layer.shape != layers[0].shape for layer in layers):
                layers = layers[:1]  # an image and its thumbnails
        # Pillow itself turns what it loads, where the tag says so
        return np.concatenate(layers, axis=-1)
