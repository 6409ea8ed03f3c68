"""Addresses in tables: fetched only where the user asks for it, and within bounds of size and time."""

import os
import queue
import threading
import time

import fsspec

from omma.core.errors import exhausted, line
from omma.core.protocols import BadImage, Inaccessible

SECONDS = 60.0  # for one image
REFUSED = "an address, which is not fetched unless you add --remote"
_CHUNK = 1 << 20  # bytes
_LOCAL = ("file://", "local://")


def allowed() -> bool:
    """Whether the user asks for addresses in tables to be fetched: `--remote`, or OMMA_REMOTE=1."""
    return os.environ.get("OMMA_REMOTE", "") not in ("", "0")


def is_remote(path: str) -> bool:
    """Whether a path is an address that is not a file of this machine."""
    return "://" in path and not path.startswith(_LOCAL)


def local_path(path: str) -> str:
    """A path without file://."""
    return str(fsspec.get_filesystem_class("file")._strip_protocol(path)) if path.startswith(_LOCAL) else path


def fetch(address: str, largest: int) -> bytes:
    """The content of an address. Raises BadImage above `largest` bytes, Inaccessible for all else.

    The download runs in a thread of its own, since few network libraries keep to a limit of time.
    """
    answer: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    end = time.monotonic() + SECONDS

    def download() -> None:
        try:
            answer.put(_read(address, largest, end))
        except Exception as error:  # a missing package, or any error of a network library
            answer.put(error)

    threading.Thread(target=download, daemon=True, name="omma-fetch").start()
    try:
        result = answer.get(timeout=SECONDS)
    except queue.Empty:
        raise Inaccessible(f"not fetched within {SECONDS:.0f} s") from None
    if isinstance(result, Exception):
        if isinstance(result, BadImage) or exhausted(result):
            raise result
        raise Inaccessible(f"cannot be fetched: {line(result)}") from None
    return result


def _read(address: str, largest: int, end: float) -> bytes:
    parts, size = [], 0
    with fsspec.open(address, "rb") as file:
        while part := file.read(_CHUNK):  # pyright: ignore[reportAttributeAccessIssue]
            parts.append(part)
            size += len(part)
            if size > largest:
                raise BadImage(f"over {largest / 1e9:.0f} GB")
            if time.monotonic() > end:
                raise Inaccessible(f"not fetched within {SECONDS:.0f} s")
    return b"".join(parts)
