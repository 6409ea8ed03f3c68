"""Parts of a file on disk, in an archive or far away, without reading the rest where that can be."""

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from omma.core.errors import line
from omma.core.protocols import BadImage
from omma.data.sources import remote
from omma.data.sources.names import inaccessible
from omma.data.sources.readers import Archive, Files

HEAD = 4096  # bytes of a packed member that are unpacked first: headers lie there
_DEFLATED, _RAW = 8, -1  # `method` of an archive's member


class Parts(NamedTuple):
    """Reads a file: (offset, size) -> up to so many bytes. Raises BadImage."""

    read: Callable[[int, int], bytes]
    size: int  # bytes of the file


def on_disk(files: Files | Archive, path: str) -> str | None:
    """Where a file lies on this machine; None where it is packed or far away."""
    if isinstance(files, Archive) or remote.is_remote(path):
        return None
    return os.path.join(files.root, remote.local_path(path))


@contextmanager
def opened(files: Files | Archive, path: str, where: np.ndarray | None) -> Iterator[Parts]:
    """Parts of a file of a store. Raises BadImage."""
    if (file := on_disk(files, path)) is not None:
        with _regular(file) as parts:
            yield parts
    elif isinstance(files, Archive):
        assert where is not None
        yield _packed(files, where) if where[3] == _DEFLATED else _stored(files, where)
    else:
        content = files.content(path, where)
        yield Parts(lambda offset, size: content[offset : offset + size], len(content))


@contextmanager
def _regular(file: str) -> Iterator[Parts]:
    try:
        # a pipe without a writer is opened too, rather than waited for
        number = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise inaccessible(error) from None
    except ValueError as error:  # a name with a zero byte
        raise BadImage(line(error)) from None
    with os.fdopen(number, "rb", buffering=0) as stream:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")

        def read(offset: int, size: int) -> bytes:
            try:
                stream.seek(offset)
                chunks = []
                while size > 0 and (chunk := stream.read(size)):  # at most 2 GB at a time
                    chunks.append(chunk)
                    size -= len(chunk)
            except OSError as error:
                raise inaccessible(error) from None
            return b"".join(chunks)

        yield Parts(read, status.st_size)


def _stored(files: Archive, where: np.ndarray) -> Parts:
    """Of a member that is not packed; its checksum is not verified."""
    start, _, length, method, _ = where.tolist()

    def raw(offset: int, size: int) -> bytes:
        return files.bytes(np.array([offset, size, size, _RAW, 0]))

    if method != _RAW:  # behind a local header, which ends in a name and an extra field
        local = raw(start, 30)
        if local[:4] != b"PK\3\4":
            raise BadImage("damaged archive")
        start += 30 + sum(struct.unpack_from("<HH", local, 26))
    return Parts(lambda at, size: raw(start + at, min(size, max(length - at, 0))), length)


def _packed(files: Archive, where: np.ndarray) -> Parts:
    """Of a deflated member: its head alone, or all of it."""
    known = files.bytes(where, HEAD)
    length = int(where[2])

    def read(offset: int, size: int) -> bytes:
        nonlocal known
        if min(offset + size, length) > len(known):
            known = files.bytes(where)
        return known[offset : offset + size]

    return Parts(read, length)
