"""Atomic file writes, and the folder of caches that can be rebuilt."""

import codecs
import contextlib
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file to write, which replaces `path` on success and is deleted on failure.

    Readers see either the old file or the new one, never half of one. Missing folders are created.
    durable: flush to disk (fsync) before replacing, so that the file survives a crash of the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if durable:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Delete temporary files left by killed writers of `path`; no process may be writing it."""
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        partial.unlink(missing_ok=True)


_BOMS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, errors: str = "strict") -> str:
    """The text of a file that a person wrote: UTF-8, or what its byte order mark says; the mark is left out.

    errors: what to do with bytes that are not valid UTF-8. Raises UnicodeDecodeError, a ValueError.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding, "replace" if errors != "strict" else errors)
    return data.decode("utf-8-sig", errors)


def omma_version() -> str:
    """The installed version, which files record; "unknown" where the package is not installed."""
    try:
        return version("omma")
    except PackageNotFoundError:
        return "unknown"


def cache_folder() -> Path:
    """$OMMA_CACHE, else $XDG_CACHE_HOME/omma, else ~/.cache/omma."""
    if own := os.environ.get("OMMA_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "omma"
