"""WAV files of every kind, whole and broken."""

import struct

import numpy as np
import pytest

from omma.core.protocols import BadImage
from omma.data.sources import wav

VALUES = np.array([-1.0, -0.5, 0.0, 0.25, 0.75])


def riff(*chunks, size=None):
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4 if size is None else size) + b"WAVE" + body


def form(code=1, channels=1, rate=8_000, bits=16, extensible=False):
    width = channels * bits // 8
    plain = struct.pack("<HHIIHH", 0xFFFE if extensible else code, channels, rate, rate * width, width, bits)
    guid = struct.pack("<H", code) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    return plain + (struct.pack("<HHI", 22, bits, 0) + guid if extensible else b"")


def stored(values, bits, floats=False):
    if floats:
        return values.astype(f"<f{bits // 8}").tobytes()
    if bits == 8:
        return (values * 128 + 128).astype(np.uint8).tobytes()
    whole = (values * 2.0 ** (bits - 1)).astype("<i8")
    return b"".join(int(v).to_bytes(bits // 8, "little", signed=True) for v in whole.ravel())


def read(data, first=0, stop=None):
    def parts(offset, size):
        return data[offset : offset + size]

    head = wav.header(parts, len(data))
    return head, head.read(parts, first, head.length if stop is None else stop)


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("bits", "floats"), [(8, 0), (16, 0), (24, 0), (32, 0), (32, 1), (64, 1)])
def test_every_type_of_sample_has_its_value(bits, floats, extensible):
    head = form(3 if floats else 1, bits=bits, extensible=extensible)
    data = riff((b"LIST", b"odd"), (b"fmt ", head), (b"data", stored(VALUES, bits, bool(floats))))
    header, values = read(data)
    assert (header.rate, header.length) == (8_000, 5)
    np.testing.assert_allclose(values, VALUES, atol=1e-12)
    np.testing.assert_array_equal(read(data, 1, 3)[1], values[1:3])


def test_channels_are_averaged():
    two = np.stack([VALUES, np.full(5, 0.25)], 1)
    _, values = read(riff((b"fmt ", form(channels=2)), (b"data", stored(two, 16))))
    np.testing.assert_allclose(values, two.mean(1))


def test_a_stream_of_unknown_length_and_rf64():
    data = stored(VALUES, 16)
    for size in (0xFFFFFFFF, 0x7FFFFFFF):
        endless = riff((b"fmt ", form())) + b"data" + struct.pack("<I", size) + data
        np.testing.assert_allclose(read(endless)[1], VALUES)
    wide = riff((b"ds64", struct.pack("<QQQI", 0, 4, 2, 0)), (b"fmt ", form()))
    large = b"RF64" + wide[4:] + b"data" + struct.pack("<I", 0xFFFFFFFF) + data
    np.testing.assert_allclose(read(large)[1], VALUES[:2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"RIFF", "not a WAV file"),
        (b"\xff\xd8\xff" + b"x" * 60, "not a WAV file"),
        (riff(), "no samples in it"),
        (riff((b"fmt ", form())), "no samples in it"),
        (riff((b"data", b"1234"), (b"fmt ", form())), "samples before their format"),
        (riff((b"fmt ", form()[:10]), (b"data", b"")), "its format is cut off"),
        (riff((b"fmt ", form(extensible=True)[:20]), (b"data", b"")), "its format is cut off"),
        (riff((b"fmt ", form(code=85)), (b"data", b"")), "WAV of MP3: convert it"),
        (riff((b"fmt ", form(code=0x1234)), (b"data", b"")), "WAV of type 0x1234: convert it"),
        (riff((b"fmt ", form(bits=12)), (b"data", b"")), "WAV of 12 bits a sample"),
        (riff((b"fmt ", form(code=3, bits=16)), (b"data", b"")), "WAV of 16 bits a sample"),
        (riff((b"fmt ", form(channels=0)), (b"data", b"")), "0 channels"),
        (riff((b"fmt ", form(rate=0)), (b"data", b"")), "0 samples a second"),
        (riff((b"fmt ", form()), (b"data", b"123456"))[:-2], "cut off: 4 of 6 bytes"),
    ],
)
def test_a_broken_header_has_a_reason(data, reason):
    with pytest.raises(BadImage, match=reason):
        read(data)


def test_a_file_cut_later_and_values_that_are_no_numbers():
    data = riff((b"fmt ", form()), (b"data", stored(VALUES, 16)))
    head, _ = read(data)
    with pytest.raises(BadImage, match="was cut"):
        head.read(lambda offset, size: data[offset : offset + size][:-1], 0, 5)
    with pytest.raises(BadImage, match="NaN"):
        read(riff((b"fmt ", form(3, bits=32)), (b"data", np.array([0, np.nan], "<f4").tobytes())))


@pytest.mark.parametrize(
    "size", [0x7FFFF000, 0x7FFFFFDB, 0xFFFFFFDB], ids=["SoX, eSpeak", "less 36", "FFmpeg"]
)
def test_a_pipe_that_wrote_a_round_size(size):
    endless = riff((b"fmt ", form())) + b"data" + struct.pack("<I", size) + stored(VALUES, 16)
    np.testing.assert_allclose(read(endless)[1], VALUES)


def test_floats_in_units_of_integers_are_refused():
    """As log-mel energies they leave the range that is read, so loud parts would all look alike."""
    for scale, bits in ((32768.0, 32), (1e300, 64)):
        data = riff(
            (b"fmt ", form(3, bits=bits)), (b"data", (VALUES * scale).astype(f"<f{bits // 8}").tobytes())
        )
        with pytest.raises(BadImage, match=r"float samples of up to .*: scale them to \[-1, 1\]"):
            read(data)
    over = riff((b"fmt ", form(3, bits=32)), (b"data", (VALUES * 2).astype("<f4").tobytes()))
    assert np.abs(read(over)[1]).max() == pytest.approx(2 * np.abs(VALUES).max(), rel=1e-6)
