"""Containers that claim or unpack too much are refused from what they claim, in one line."""

import gzip
import io
import struct
import zipfile
from functools import partial

import numpy as np
import pytest

from omma.data.sources.collection import ArrayImages, open_images
from omma.data.sources.limits import is_bomb

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
gz = partial(gzip.compress, mtime=0)  # the same bytes in every process: they name the test


def npy(shape: str, data: bytes = b"", dtype: str = "|u1") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


def npz(**members: bytes) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def idx(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + data


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.npz", npz(x=npy("(300, 512, 512)", bytes(300 * 512 * 512))), "unpack to 79 MB"),
        ("x.npz", npz(x=npy("(10**12, 9, 9)")), "cannot be read|no array of images"),
        ("x.npz", npz(x=npy("(1000000000000, 9, 9)")), "claims a shape that it does not have"),
        ("x.npz", npz(x=npy("(5, 6, 8)", IMAGES.tobytes())), "claims a shape that it does not have"),
        ("x.npz", npz(x=npy("(1000000000000, 0, 9)")), "has no pixels"),
        ("x.npy", npy("(1000000000000, 0, 9)"), "cannot be read|has no pixels"),
        ("x.npy", npy("(1000000000000, 9, 9)"), "cannot be read"),
        ("x.npy", npy("(99999999999999999999999, 9, 9)"), "cannot be read"),
        ("x.npy", npy("(" * 50), "cannot be read"),
        ("x.npy", npy("(5, 6, 7)", IMAGES.tobytes(), dtype="|O"), "cannot be read"),
        ("x-ubyte.gz", gz(idx((300, 512, 512), bytes(300 * 512 * 512)), 1), "unpack to 79 MB"),
        ("x-ubyte.gz", gz(idx((2**32 - 1,) * 4)), "unpack to"),
        ("x-ubyte.gz", gz(idx((2**31, 0, 9))), "has no pixels"),
        ("x-ubyte", idx((2**32 - 1,) * 255), "not an IDX file"),
        ("x-ubyte", idx((2**32 - 1,) * 4), "truncated"),
        ("x-ubyte.gz", gz(idx((5, 6, 7), IMAGES.tobytes()[:-1])), "truncated"),
        ("x-ubyte.gz", gz(idx((5, 6, 7), IMAGES.tobytes()))[:-8] + bytes(8), "CRC check failed"),
    ],
)
def test_what_is_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        open_images(tmp_path / name)
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.npz", npz(x=npy("(5, 6, 7)", IMAGES.tobytes()), odd=b"no array", names=npy("(1,)", dtype="|O"))),
        ("x.npy", npy("(5, 6, 7)", IMAGES.tobytes())),
        ("x-ubyte.gz", gz(idx((5, 6, 7), IMAGES.tobytes()))),
        ("x-ubyte", idx((5, 6, 7), IMAGES.tobytes())),
    ],
)
def test_the_same_shapes_are_read_where_they_are_true(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    images = open_images(tmp_path / name)
    for i in range(5):
        np.testing.assert_array_equal(images.read(i)[..., 0], IMAGES[i])


def test_large_images_in_an_array(tmp_path):
    with pytest.raises(ValueError, match="million pixels"):
        ArrayImages(np.broadcast_to(np.uint8(0), (1, 20_000, 20_000, 3)))
    assert len(ArrayImages(np.broadcast_to(np.uint8(0), (2, 12_000, 12_000, 1)))) == 2


def test_what_is_a_bomb():
    assert not is_bomb(60 << 20, 1)
    assert not is_bomb(10 << 30, 1 << 30)
    assert is_bomb(70 << 20, 1 << 16)
