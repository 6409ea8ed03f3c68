"""IDX files, as MNIST has them."""

import gzip
import math
import os
import re
import struct
from pathlib import Path

import numpy as np

from omma.data.sources.limits import INFLATED, RATIO, refuse_bomb

TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read(file: str) -> np.ndarray:
    """The array of an IDX file, which may be gzipped. Raises ValueError, OSError or EOFError."""
    with gzip.open(file) if file.endswith(".gz") else open(file, "rb") as stream:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or magic[3] > 4:
            raise ValueError(f"{Path(file).name}: not an IDX file; unpack it if it is another archive")
        shape = struct.unpack(f">{magic[3]}I", stream.read(4 * magic[3]))
        dtype = np.dtype(TYPES[magic[2]])
        size = math.prod(shape) * dtype.itemsize
        if file.endswith(".gz"):
            refuse_bomb(Path(file).name, size, os.path.getsize(file))
        data = stream.read(min(size, INFLATED + RATIO * os.path.getsize(file)))  # allocated at once
        stream.read(1)  # at the end of its data, gzip compares the checksum
    if len(data) < size:
        raise ValueError(f"{Path(file).name}: truncated; fetch it again")
    return np.frombuffer(data, dtype).reshape(shape)


def labels(file: str) -> np.ndarray | None:
    """Labels from the file in the same folder, named as in MNIST; None without one."""
    folder, name = os.path.split(file)
    beside = os.path.join(folder, re.sub(r"images([-.])idx\d", r"labels\1idx1", name))
    return read(beside) if beside != file and os.path.exists(beside) else None
