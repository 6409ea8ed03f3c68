"""What a container may unpack to, decided from what it claims before any of it is unpacked."""

import math
import os
import zipfile
import zlib
from typing import IO

import numpy as np

LARGEST = 1 << 30  # bytes of one encoded image; a larger file is a decompression bomb or a video
INFLATED, RATIO = 1 << 26, 100  # bytes that anything may unpack to; times its packed bytes for more


def is_bomb(size: int, packed: int) -> bool:
    """Whether data unpack to far more bytes than packed images do."""
    return size > INFLATED and size > RATIO * packed


def in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def refuse_bomb(name: str, size: int, packed: int) -> None:
    """Raise ValueError for a bomb."""
    if is_bomb(size, packed):
        raise ValueError(
            f"{name}: {in_words(packed)} that unpack to {in_words(size)}; save it again, not compressed"
        )


def check_npz(file: str, name: str) -> None:
    """Raise ValueError if the arrays of an .npz unpack to far more than it holds, or claim a false shape."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        refuse_bomb(name, sum(member.file_size for member in members), os.path.getsize(file))
        for member in members:
            try:
                with archive.open(member) as stream:
                    claimed = _claimed(stream)
            except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
                continue  # numpy will not read it either
            if claimed is not None and claimed != member.file_size:
                raise ValueError(
                    f"{name}: {member.filename} claims a shape that it does not have; save it again"
                )


def _claimed(stream: IO[bytes]) -> int | None:
    """Bytes that an .npy file has by its header; None for one of Python objects, which is never read."""
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    return None if dtype.hasobject else stream.tell() + math.prod(shape) * dtype.itemsize
