"""Atomic file writes, and the folder of caches that can be rebuilt."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omma.core.explain import writing


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file to write, which replaces `path` on success and is deleted on failure.

    Readers see either the old file or the new one, never half of one. Missing folders are created.
    durable: flush to disk (fsync) before replacing, so that the file survives a crash of the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
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


def omma_version() -> str:
    """The installed version, which files record; "unknown" where the package is not installed."""
    try:
        return version("omma")
    except PackageNotFoundError:
        return "unknown"


def cache_folder() -> Path:
    """$OMMA_CACHE, else $XDG_CACHE_HOME/omma, else ~/.cache/omma; among temporary files without a home."""
    if own := os.environ.get("OMMA_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(shared) if shared else Path.home() / ".cache") / "omma"
    except RuntimeError:  # neither $HOME nor an entry for this user
        return Path(tempfile.gettempdir()) / f"omma-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
