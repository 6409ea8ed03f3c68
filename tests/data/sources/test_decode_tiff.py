"""TIFF values do not depend on compression, predictor, layout or tags: they are Pillow's and tifffile's."""

import io
import itertools
import struct

import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image

from omma.core.protocols import BadImage
from omma.data.sources.decode import decode

RNG = np.random.default_rng(0)
COMPRESSIONS = (None, "zlib", "lzma")


def written(values: np.ndarray, **options) -> bytes:
    tifffile.imwrite(file := io.BytesIO(), values, **options)
    return file.getvalue()


def by_pillow(image: Image.Image, **options) -> bytes:
    image.save(file := io.BytesIO(), "TIFF", **options)
    return file.getvalue()


def tagged(strips: list[bytes], order: str = "<", **tags: int | tuple[int, ...]) -> bytes:
    """A TIFF of these strips, uncompressed or not; tags by name, each written as LONG."""
    values = {tifffile.TIFF.TAGS[name]: np.atleast_1d(value).tolist() for name, value in tags.items()}
    values[273], values[279] = [0] * len(strips), [len(strip) for strip in strips]
    long_ones = sum(4 * len(value) for value in values.values() if len(value) > 1)
    start = 8 + 2 + 12 * len(values) + 4
    ends = np.cumsum([start + long_ones, *values[279]]).tolist()
    values[273] = ends[:-1]
    entries, extra = b"", b""
    for tag, value in sorted(values.items()):
        content = struct.pack(f"{order}{len(value)}I", *value)
        entries += struct.pack(f"{order}HHI", tag, 4, len(value))
        entries += content if len(value) == 1 else struct.pack(f"{order}I", start + len(extra))
        extra += b"" if len(value) == 1 else content
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(values))
    return head + entries + bytes(4) + extra + b"".join(strips)


def lzw(rows: np.ndarray) -> bytes:
    """The bytes of these rows, compressed by LZW as one strip."""
    data = by_pillow(Image.fromarray(rows), compression="tiff_lzw", tiffinfo={278: len(rows)})
    page = tifffile.TiffFile(io.BytesIO(data)).pages.first
    return data[page.dataoffsets[0] :][: page.databytecounts[0]]


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_values_in_every_layout(dtype, channels):
    values = (RNG.random((40, 50, channels)) * 200).astype(dtype)
    expected = (values[..., :3] if channels == 4 else values).astype(dtype if dtype in ("u1", "u2") else "f4")
    options = itertools.product(COMPRESSIONS, (False, True), (None, (16, 32)), "<>", ("contig", "separate"))
    for compression, predictor, tile, order, planar in options:
        if (predictor and (compression not in ("zlib", "lzma") or dtype[0] == "f")) or (
            planar == "separate" and channels == 1
        ):
            continue
        stored = values[..., 0] if channels == 1 else values
        data = written(
            stored if planar == "contig" else stored.transpose(2, 0, 1),
            photometric="rgb" if channels > 2 else "minisblack",
            planarconfig=None if channels == 1 else planar,
            compression=compression,
            predictor=predictor,
            tile=tile,
            byteorder=order,
            bigtiff=order == ">",
            extrasamples=["unassalpha"] if channels == 4 else None,
        )
        np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason="Pillow before 13 writes into freed memory where it cannot write a TIFF",
)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "CMYK", "1", "P", "I;16", "I", "F"])
def test_compressions_that_pillow_writes(mode):
    colours = Image.fromarray(RNG.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize((61, 47))
    grey = np.array(colours.convert("L"))
    images = {
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "I": colours.convert("L").convert("I"),
        "F": Image.fromarray(grey / np.float32(7)),
    }
    image = images[mode] if mode in images else colours.convert(mode)
    compressions = ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "lzma", "zstd"]
    predictors = [{}, {"tiffinfo": {317: 2}}, {"tiffinfo": {317: 3}} if mode == "F" else {}]
    tried = 0
    for compression, options in itertools.product(compressions, predictors):
        try:
            data = by_pillow(image, compression=compression, **options)
            back = Image.open(io.BytesIO(data))
            back.load()
        except Exception:  # Pillow does not write, or not read, this combination
            continue
        if back.mode not in ("I;16", "I", "F"):
            back = back.convert("L" if mode in ("1", "L", "LA") else "RGB")
        expected = np.array(back)
        decoded = decode(data)
        np.testing.assert_array_equal(decoded, expected.reshape(decoded.shape))
        tried += 1
    assert tried >= 4


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("predictor", [1, 2])
def test_16_bit_colours_by_lzw_keep_16_bits(order, predictor):
    """Pillow alone gives their upper 8 bits."""
    values = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    stored = np.diff(values, axis=1, prepend=np.uint16(0)) if predictor == 2 else values
    rows = stored.astype(f"{order}u2").reshape(20, 90).view(np.uint8)
    tags = {"ImageWidth": 30, "ImageLength": 20, "BitsPerSample": (16, 16, 16), "Compression": 5}
    tags |= {"PhotometricInterpretation": 2, "SamplesPerPixel": 3, "RowsPerStrip": 20, "Predictor": predictor}
    data = tagged([lzw(rows)], order, **tags)
    np.testing.assert_array_equal(decode(data), values)
    np.testing.assert_array_equal(decode(data), decode(written(values, photometric="rgb")))


def test_white_is_zero_is_inverted_at_any_number_of_bits():
    for dtype, white in ((np.uint8, 255), (np.uint16, 65535)):
        values = RNG.integers(0, white, (12, 16)).astype(dtype)
        for compression in (None, "zlib"):
            data = written(values, photometric="miniswhite", compression=compression)
            np.testing.assert_array_equal(decode(data)[..., 0], white - values)
    eight = Image.open(io.BytesIO(written(values.astype(np.uint8), photometric="miniswhite")))
    np.testing.assert_array_equal(decode(by_pillow(eight))[..., 0], np.array(eight))
    floats = written(values.astype(np.float32), photometric="miniswhite")  # these have no white
    np.testing.assert_array_equal(decode(floats)[..., 0], values)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_values(bits):
    values = RNG.integers(0, 1 << bits, (6, 7), dtype=np.uint16)
    digits = (values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)
    rows = np.packbits(digits.reshape(6, -1), axis=1)
    tags = {"ImageWidth": 7, "ImageLength": 6, "BitsPerSample": bits, "Compression": 1}
    data = tagged([rows.tobytes()], PhotometricInterpretation=1, SamplesPerPixel=1, RowsPerStrip=6, **tags)
    decoded = decode(data)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded[..., 0], values)
    if bits == 12:
        np.testing.assert_array_equal(decoded[..., 0], np.array(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(("photometric", "channels"), [("rgb", 3), ("separated", 4)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_preview_is_passed_over(photometric, channels, compression):
    full = RNG.integers(0, 256, (64, 64, channels), dtype=np.uint8)
    small = full[::8, ::8]
    options = {"photometric": photometric, "compression": compression}
    expected = decode(written(full, **options))
    with tifffile.TiffWriter(chain := io.BytesIO()) as writer:
        writer.write(small, subfiletype=1, **options)
        writer.write(full, **options)
    with tifffile.TiffWriter(nested := io.BytesIO()) as writer:  # as cameras do
        writer.write(small, subfiletype=1, subifds=2, **options)
        writer.write(small[::2], subfiletype=1, **options)
        writer.write(full, **options)
    with tifffile.TiffWriter(pyramid := io.BytesIO(), bigtiff=True) as writer:
        writer.write(full, subifds=1, **options)
        writer.write(small, subfiletype=1, **options)
    for file in (chain, nested, pyramid):
        np.testing.assert_array_equal(decode(file.getvalue()), expected)


def test_only_previews():
    small = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(written(small, photometric="rgb", subfiletype=1)), small)


def test_a_compression_for_which_a_package_is_missing_is_named():
    data = written(RNG.integers(0, 65536, (8, 8), dtype=np.uint16), compression="zlib")
    lerc = data.replace(struct.pack("<HHIH", 259, 3, 1, 8), struct.pack("<HHIH", 259, 3, 1, 34887))
    with pytest.raises(BadImage, match=r"LERC: `(uv )?pip install -U imagecodecs`"):
        decode(lerc)


@pytest.mark.parametrize("compression", ["zlib", "lzma"])
def test_a_tile_is_decompressed_to_its_size_and_no_further(compression):
    def resized(data: bytes, tags: tuple[int, ...], old: int, new: int) -> bytes:
        for tag in tags:
            old_entry = struct.pack("<HHII", tag, 4, 1, old)
            assert old_entry in data
            data = data.replace(old_entry, struct.pack("<HHII", tag, 4, 1, new))
        return data

    data = written(np.zeros((64, 64), np.uint16), tile=(64, 64), compression=compression)
    with pytest.raises(BadImage, match="tiles of 40000 x 40000 pixels"):
        decode(resized(data, (322, 323), 64, 40_000))
    with pytest.raises(BadImage, match="truncated"):
        decode(resized(data, (322,), 64, 512))
    tiny = resized(resized(data, (256, 257), 64, 8_000), (322, 323), 64, 16)
    with pytest.raises(BadImage, match="250,000 strips or tiles"):
        decode(tiny)
    many = written(np.zeros((512, 512), np.uint16), tile=(512, 512), compression=compression)
    assert decode(resized(many, (256, 257, 322, 323), 512, 64)).shape == (64, 64, 1)
    flat = resized(resized(data, (257,), 64, 0), (256,), 64, 4_294_967_104)
    with pytest.raises(BadImage, match="claims 4294967104 x 0 pixels"):
        decode(flat)


STACK = np.random.default_rng(5).integers(0, 60_000, (2, 5, 3, 16, 20), dtype=np.uint16)


@pytest.mark.parametrize(
    "kind", [{"ome": True}, {"ome": True, "compression": "zlib"}, {"imagej": True}], ids=str
)
@pytest.mark.parametrize(
    ("axes", "values", "wanted"),
    [
        ("TZCYX", STACK, STACK[0, 2]),
        ("ZCYX", STACK[0], STACK[0, 2]),
        ("TZYX", STACK[:, :, 0], STACK[0, 2, :1]),
        ("CYX", STACK[0, 0], STACK[0, 0]),
    ],
)
def test_a_stack_gives_its_channels_at_middle_depth_and_first_time(kind, axes, values, wanted):
    out = io.BytesIO()
    tifffile.imwrite(out, values, metadata={"axes": axes}, **kind)
    np.testing.assert_array_equal(decode(out.getvalue()), np.moveaxis(wanted, 0, -1))


def test_the_first_series_of_an_ome_file_is_read():
    out = io.BytesIO()
    with tifffile.TiffWriter(out, ome=True) as writer:
        writer.write(STACK[0, 0], metadata={"axes": "CYX"})
        writer.write(STACK[1, 0, :, :8, :8], metadata={"axes": "CYX"})
    np.testing.assert_array_equal(decode(out.getvalue()), np.moveaxis(STACK[0, 0], 0, -1))
