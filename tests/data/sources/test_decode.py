"""Every format, honest or hostile, decodes to what Pillow or the written array says, or is a BadImage."""

import io
import struct
import threading
import zlib

import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image, ImageOps

from omma.core.protocols import BadImage
from omma.data.sources.decode import decode, sniff

RNG = np.random.default_rng(0)

PILLOW = int(PIL.__version__.split(".")[0])


def smooth(height: int = 48, width: int = 64) -> Image.Image:
    """A colour picture without symmetry, soft enough for lossy formats."""
    small = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def tiff(values: np.ndarray, **options) -> bytes:
    tifffile.imwrite(file := io.BytesIO(), values, **options)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A well-formed PNG header of this size with hardly any data behind it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("JPEG", {"quality": 95}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {"quality": 90}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats_as_pillow_reads_them(kind, options, mode):
    data = encoded(smooth().convert(mode), kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert sniff(data[:64])
    native = decode(data)
    assert native.dtype == np.uint8
    assert native.flags.c_contiguous
    assert native.flags.writeable
    # WebP has no grey
    assert native.shape[-1] == (3 if mode == "RGB" or kind == "WEBP" else 1)
    np.testing.assert_array_equal(decode(data, channels=3), expected)
    assert decode(data, channels=1).shape == (48, 64, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "JPEG"])
def test_modes(mode, kind):
    if (kind, mode) == ("TIFF", "YCbCr") and PILLOW < 13:
        pytest.skip("Pillow before 13 does not read the YCbCr that it writes")
    image = smooth().convert(mode)
    try:
        data = encoded(image, kind)
    except (OSError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)
    image = decode(data, channels=3)
    assert image.shape == expected.shape
    assert image.dtype == np.uint8
    assert np.abs(image - expected).max() <= 1


def test_alpha_is_dropped_not_painted():
    image = smooth()
    image.putalpha(0)
    assert np.array_equal(decode(encoded(image, "PNG")), np.asarray(image)[..., :3])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation(orientation, kind, order):
    exif = Image.Exif()
    exif.endian = order
    exif[274], exif[271] = orientation, "a maker"
    data = encoded(smooth(), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), np.asarray(expected))


def test_gif_gives_its_first_frame():
    frames = [Image.new("L", (20, 10), value) for value in (50, 200)]
    frames[0].save(file := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    assert np.unique(decode(file.getvalue())).tolist() == [50]


@pytest.mark.parametrize("at_least", [1, 10, 40, 60, 100, 187, 200, 375, 1000])
def test_reduced_scale_keeps_enough(at_least):
    data = encoded(smooth(375, 500), "JPEG")
    height, width, _ = decode(data, at_least=at_least).shape
    assert min(height, width) >= min(at_least, 375)
    if at_least <= 60:
        assert height <= 94  # a quarter


# ---------------------------------------------------------------- more than 8 bits, more than 3 channels
def test_16_bit_grey_keeps_raw_values():
    values = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    for data in (
        encoded(Image.fromarray(values), "PNG"),
        tiff(values),
        encoded(Image.fromarray(values), "TIFF"),
    ):
        decoded = decode(data)
        assert decoded.dtype == np.uint16
        np.testing.assert_array_equal(decoded[..., 0], values)
    assert decode(data, channels=3).shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((6, 40, 50), {}),
        ((6, 40, 50), {"photometric": "minisblack"}),
        ((6, 40, 50), {"imagej": True}),
        ((6, 40, 50), {"ome": True}),
        ((6, 40, 50), {"compression": "zlib"}),
        ((6, 40, 50), {"photometric": "minisblack", "planarconfig": "separate"}),
        ((40, 50, 6), {"photometric": "minisblack", "planarconfig": "contig"}),
        ((100, 50, 6), {}),  # tifffile writes 100 pages of 50 x 6
    ],
)
def test_many_channels(shape, options):
    values = RNG.integers(0, 65536, shape, dtype=np.uint16)
    expected = values if shape[-1] == 6 else values.transpose(1, 2, 0)
    decoded = decode(tiff(values, **options), channels=6)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, expected)
    with pytest.raises(BadImage, match="6 channels where the collection has 3"):
        decode(tiff(values, **options), channels=3)


def test_tiff_dtypes():
    assert decode(tiff(np.ones((9, 9), np.uint8))).dtype == np.uint8
    floats = RNG.normal(size=(9, 9)).astype(np.float32)
    np.testing.assert_array_equal(decode(tiff(floats))[..., 0], floats)
    floats[3, 3] = np.nan
    with pytest.raises(BadImage, match="NaN"):
        decode(tiff(floats))


def test_pages():
    colour = RNG.integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(tiff(colour, photometric="rgb")), colour[0])
    with pytest.raises(BadImage, match="100 pages"):
        decode(tiff(np.zeros((100, 70, 70), np.uint8)))
    lzw = [Image.fromarray(page) for page in RNG.integers(0, 256, (5, 20, 30), dtype=np.uint8)]
    lzw[0].save(file := io.BytesIO(), "TIFF", compression="tiff_lzw", save_all=True, append_images=lzw[1:])
    np.testing.assert_array_equal(decode(file.getvalue()), np.stack(lzw, -1))


# ---------------------------------------------------------------- hostile
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("at_least", [None, 1])
def test_truncated(kind, share, at_least):
    noise = Image.fromarray(RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * share)], at_least=at_least)


def test_truncated_progressive_jpeg():
    data = encoded(smooth(), "JPEG", progressive=True)
    with pytest.raises(BadImage, match="damaged JPEG"):
        decode(data[:-200], at_least=1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am a text", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG, which omma does not read: convert it to"),
        (b"BMW is a car maker, not a bitmap", "not an image"),
        (bytes(1000), "not an image"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"II*\0" + b"\xff" * 50, "TIFF"),
        (b"P5 0 0 255\n", "PPM|no pixels"),
        (png_claiming(60_000, 60_000), "million"),
        (png_claiming(9_000, 9_000), "damaged PNG"),
        (png_claiming(13_000, 13_000), "over 93 million"),
        (b"P6 60000 60000 255\n" + bytes(99), "million"),
    ],
)
def test_hostile(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode(data)


def test_bombs_in_jpeg_and_tiff():
    jpeg = bytearray(encoded(smooth(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")  # start of frame: length, precision, height, width
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(BadImage, match="million"):
        decode(bytes(jpeg))
    wide = tiff(np.zeros((8, 8), np.uint8))
    pixels = wide.replace(struct.pack("<HHII", 256, 4, 1, 8), struct.pack("<HHII", 256, 4, 1, 60_000))
    pixels = pixels.replace(struct.pack("<HHII", 257, 4, 1, 8), struct.pack("<HHII", 257, 4, 1, 60_000))
    assert pixels != wide
    with pytest.raises(BadImage, match="million"):
        decode(pixels)


def test_damage_at_random_places_is_never_another_error():
    samples = [encoded(smooth(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")]
    samples.append(tiff(RNG.integers(0, 65536, (6, 20, 20), dtype=np.uint16), compression="zlib"))
    for data in samples:
        for _ in range(60):
            damaged = bytearray(data)
            for at in RNG.integers(4, len(data), 5):
                damaged[at] = RNG.integers(256)
            try:
                image = decode(bytes(damaged))
            except BadImage as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert image.ndim == 3


def test_harmless_oddities():
    data = encoded(smooth(), "JPEG")
    assert decode(data + b"trailing" * 9).shape == (48, 64, 3)
    assert decode(data[:20] + b"\0\0\0" + data[20:]).shape == (48, 64, 3)


def test_name_and_threads():
    with pytest.raises(BadImage, match=r"a\.jpg: empty"):
        decode(b"", name="a.jpg")
    data = [encoded(smooth(), kind) for kind in ("JPEG", "PNG", "TIFF")] * 10
    expected, decoded = [decode(d) for d in data], {}
    threads = [
        threading.Thread(target=lambda k=k: decoded.update({k: [decode(d) for d in data]})) for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for images in decoded.values():
        assert all(np.array_equal(a, b) for a, b in zip(images, expected))
    assert len(decoded) == 4
