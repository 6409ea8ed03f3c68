"""Tags and chunks in unusual places, metadata of any size, and files that claim to be more than they are."""

import io
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from omma.core.errors import install_command
from omma.core.protocols import BadImage, Inaccessible
from omma.data.sources import decode_png16
from omma.data.sources.decode import decode, plain_jpeg
from omma.data.sources.formats import sniff, unread

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def in_png(*chunks: bytes) -> bytes:
    """The picture as a PNG with these chunks after its header."""
    data = encoded(PICTURE, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


# ---------------------------------------------------------------- orientation
def exif(order: str, type_: int) -> bytes:
    """EXIF data of one tag, orientation 6, as SHORT (3) or LONG (4)."""
    value = struct.pack(order + ("HH" if type_ == 3 else "I"), *((6, 0) if type_ == 3 else (6,)))
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "IHHHI", 8, 1, 274, type_, 1) + value + bytes(4)


@pytest.mark.parametrize("type_", [3, 4], ids=["SHORT", "LONG"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_of_either_type(kind, order, type_):
    if kind == "TIFF":
        data = io.BytesIO()
        extra = [(274, type_, 1, 6, True)]
        tifffile.imwrite(data, np.array(PICTURE), photometric="rgb", byteorder=order, extratags=extra)
        assert decode(data.getvalue()).shape == (64, 48, 3)
        return
    data = encoded(PICTURE, kind, exif=b"Exif\0\0" * (kind == "JPEG") + exif(order, type_))
    assert decode(data).shape == (64, 48, 3)
    upright = decode(encoded(PICTURE, kind))
    np.testing.assert_array_equal(decode(data), upright.swapaxes(0, 1)[:, ::-1])


def test_orientation_after_fill_bytes_and_other_segments():
    plain = encoded(PICTURE, "JPEG")
    content = b"Exif\0\0" + exif("<", 3)
    segment = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    xmp = b"\xff\xe1\x00\x20http://ns.adobe.com/xap/1.0/\0 "
    for before in (b"\xff\xff\xff", xmp, xmp + b"\xff\xff", b"\xff\x01"):
        data = plain[:2] + before + segment + plain[2:]
        assert decode(data).shape == (64, 48, 3), before
    assert plain_jpeg(plain[:2] + b"\xff\xff\xff" + segment + plain[2:])


def test_16_bit_pgm_is_scaled_from_its_own_white():
    for white in (1023, 4095, 65535):
        values = np.array([[0, white // 3, white]])
        for data in (
            b"P5 3 1 %d\n" % white + values.astype(">u2").tobytes(),
            b"P2 3 1 %d\n" % white + b" ".join(b"%d" % value for value in values[0]),
        ):
            decoded = decode(data)
            assert decoded.dtype == np.uint16
            np.testing.assert_allclose(decoded[..., 0], values * (65535 / white), atol=1)


FILTERS = {  # [PNG, third edition, 9.2]: what is subtracted, from the bytes to the left, above and left above
    0: lambda a, b, c: 0,
    1: lambda a, b, c: a,
    2: lambda a, b, c: b,
    3: lambda a, b, c: (a + b) // 2,
    4: lambda a, b, c: min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2],
}


def filtered(values: np.ndarray, first: int) -> bytes:
    """Rows of a PNG with big-endian 16-bit values, each row with the next filter."""
    rows = values.astype(">u2").reshape(len(values), -1).view(np.uint8).astype(int)
    step, out = 2 * values.shape[2], bytearray()
    for y, row in enumerate(rows):
        kind, above = (first + y) % 5, rows[y - 1] if y else row * 0
        left = np.r_[[0] * step, row[:-step]]
        corner = np.r_[[0] * step, above[:-step]]
        out += bytes([kind, *((x - FILTERS[kind](*abc)) % 256 for x, *abc in zip(row, left, above, corner))])
    return bytes(out)


def png_of_16_bits(colour: int, values: np.ndarray, interlaced: bool, first: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, interlaced)
    adam7 = ["0088", "0488", "4084", "0244", "2042", "0122", "1021"]
    passes = [tuple(map(int, each)) for each in (adam7 if interlaced else ["0011"])]
    parts = [values[top::dy, left::dx] for top, left, dy, dx in passes]
    lines = b"".join(filtered(part, first) for part in parts if part.size)
    body = zlib.compress(lines)
    data = [chunk(b"IDAT", body[: len(body) // 2]), chunk(b"IDAT", body[len(body) // 2 :])]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 1), (9, 2), (17, 16)])
def test_png_keeps_16_bits(height, width, colour, channels, interlaced):
    """Of several channels, Pillow gives the upper 8 bits."""
    smooth = np.linspace(0, 60_000, height * width * channels).reshape(height, width, channels)
    values = (smooth + RNG.integers(0, 600, smooth.shape)).astype(np.uint16)
    for first in range(5):
        data = png_of_16_bits(colour, values, interlaced, first)
        decoded = decode(data)
        assert decoded.dtype == np.uint16
        np.testing.assert_array_equal(decoded, values[..., : 3 if channels > 2 else 1])
        if channels > 1:
            upper = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
            np.testing.assert_array_equal(upper, np.broadcast_to(decoded >> 8, upper.shape))


def test_a_png_of_16_bits_without_numba_names_the_remedy(monkeypatch):
    monkeypatch.setattr(decode_png16, "compiles", lambda: False)
    data = png_of_16_bits(2, np.zeros((4, 4, 3), np.uint16), interlaced=False)
    with pytest.raises(Inaccessible, match=re.escape(f"needs Numba: {install_command('fast')}")):
        decode(data)


def test_damaged_png_of_16_bits():
    values = RNG.integers(0, 65536, (30, 30, 3), dtype=np.uint16)
    data = png_of_16_bits(2, values, interlaced=False)
    turned = data[:33] + chunk(b"eXIf", exif(">", 3)) + data[33:]
    np.testing.assert_array_equal(decode(turned), values.swapaxes(0, 1)[:, ::-1])
    broken = bytearray(data)
    broken[100] ^= 1
    for bad in (data[:200], data[:-20], bytes(broken)):
        with pytest.raises(BadImage, match="damaged PNG"):
            decode(bad)
    wide = png_of_16_bits(2, values, interlaced=False).replace(
        chunk(b"IHDR", data[16:29]), chunk(b"IHDR", struct.pack(">II", 9_000, 9_000) + data[24:29])
    )
    with pytest.raises(BadImage, match="PNG of 9000 x 9000"):
        decode(wide)


def test_gamma_changes_no_value():
    np.testing.assert_array_equal(decode(in_png(chunk(b"gAMA", struct.pack(">I", 100)))), np.array(PICTURE))


# ---------------------------------------------------------------- metadata
@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(30 << 20)))],
        [chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(30 << 20)))],
        [chunk(b"tEXt", b"key\0" + bytes(1 << 20))] * 70,
        [chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(30 << 20)))],
        [chunk(b"iCCP", b"profile\0\0" + b"no zlib stream")],
        [chunk(b"sRGB", b"")],
        [chunk(b"tEXt", b"key\0a")[:-1] + b"!"],  # a wrong checksum of what is not needed
        [chunk(b"eXIf", bytes(1 << 17))],
        [chunk(b"acTL", b"")],
    ],
    ids=["zTXt", "iTXt", "tEXt", "iCCP", "damaged iCCP", "empty sRGB", "checksum", "eXIf", "acTL"],
)
def test_pixels_are_not_refused_for_metadata(chunks):
    np.testing.assert_array_equal(decode(in_png(*chunks)), np.array(PICTURE))


def test_a_large_profile_in_other_formats():
    profile = bytes(3 << 20)
    for kind in ("JPEG", "TIFF"):
        assert decode(encoded(PICTURE, kind, icc_profile=profile)).shape == (48, 64, 3)
    webp = encoded(PICTURE, "WEBP", lossless=True, icc_profile=profile)
    np.testing.assert_array_equal(decode(webp), np.array(PICTURE))


# ---------------------------------------------------------------- formats
@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc", "HEIC"),
        (b"8BPS\0\1", "Photoshop"),
        (b"II*\0\x10\0\0\0CR\2\0", "raw"),
        (b"FUJIFILMCCD-RAW ", "raw"),
        (b'<?xml version="1.0"?><svg>', "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\1\0\1\0\x10\x10", "ICO"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"#?RADIANCE\n", "Radiance HDR"),
        (b"SIMPLE  =    T", "FITS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_formats_that_are_not_read_are_named_with_a_remedy(head, name):
    assert not sniff(head[:64])
    assert name in (unread(head) or "")
    with pytest.raises(BadImage, match=f"{name}.*: "):
        decode(head + bytes(200))


def test_avif_of_other_brands_is_read():
    data = encoded(PICTURE, "AVIF")
    assert data[4:12] == b"ftypavif"
    other = data[:8] + b"mif1" + data[12:]
    assert sniff(other[:64])
    np.testing.assert_array_equal(decode(other), decode(data))


@pytest.mark.parametrize(("marker", "name"), [(0xC3, "lossless"), (0xC1, "of 12 bits"), (0xF7, "JPEG-LS")])
def test_jpegs_of_rare_kinds_are_named(marker, name):
    data = bytearray(encoded(PICTURE, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1] = marker
    data[at + 4] = 12 if marker == 0xC1 else 8
    with pytest.raises(BadImage, match=name):
        decode(bytes(data))
    assert not plain_jpeg(bytes(data))


def test_plain_jpeg_is_never_an_error():
    data = encoded(PICTURE, "JPEG")
    for at in range(2, 700):
        for value in (0, 1, 255):
            mutant = data[:at] + bytes([value]) + data[at + 1 :]
            assert plain_jpeg(mutant) in (True, False)


# ---------------------------------------------------------------- bombs
def test_what_takes_too_much_memory_is_refused_before_it_is_decoded():
    def webp(width: int, height: int) -> bytes:
        body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        riff = b"WEBPVP8X" + struct.pack("<I", len(body)) + body
        return b"RIFF" + struct.pack("<I", len(riff)) + riff

    with pytest.raises(BadImage, match="WebP of 13000 x 13000 pixels, over 34 million"):
        decode(webp(13_000, 13_000))
    progressive = bytearray(encoded(PICTURE, "JPEG", progressive=True))
    at = progressive.index(b"\xff\xc2")
    progressive[at + 5 : at + 9] = struct.pack(">HH", 12_000, 12_000)
    with pytest.raises(BadImage, match="progressive JPEG of 12000 x 12000"):
        decode(bytes(progressive))
    at = progressive.index(b"\xff\xc2")
    progressive[at + 5 : at + 9] = struct.pack(">HH", 8_000, 8_000)
    scan = progressive.index(b"\xff\xda")
    with pytest.raises(BadImage, match="too many scans"):
        decode(bytes(progressive[:scan] + progressive[scan : scan + 12] * 100 + progressive[scan:]))


MEASURE = """
import sys
from omma.core.errors import install_command
from omma.core.protocols import BadImage, Inaccessible
from omma.data.sources import decode_png16
from omma.data.sources.decode import decode
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) >> 10
data = open(sys.argv[1], "rb").read()
before = peak()
try:
    decode(data)
except BadImage as error:
    print(error)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG2000", "GIF", "TIFF", "JPEG", "AVIF"])
def test_the_largest_image_of_each_format_takes_less_than_a_gigabyte(kind, tmp_path):
    from omma.data.sources.decode_pillow import COST, MEMORY, PIXELS

    side = int(min(MEMORY / COST[kind], PIXELS) ** 0.5)
    options = {"JPEG": {"progressive": True}, "TIFF": {"compression": "tiff_lzw"}, "AVIF": {"speed": 10}}
    file = tmp_path / "a"
    Image.new("RGB", (side, side), (200, 100, 50)).save(file, kind, **options.get(kind, {}))
    got = subprocess.run([sys.executable, "-c", MEASURE, file], capture_output=True, text=True, check=True)
    assert int(got.stdout.split()[-1]) < 1024, got.stdout
    assert "claims" not in got.stdout
