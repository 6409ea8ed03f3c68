"""Files that are there whole or not at all, and where those lie that can be made anew."""

import contextlib
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path, *, lasting: bool = False) -> Iterator[Path]:
    """The name of a file to write, which takes the place of `path` when all went well, and else is gone.

    Whoever reads meanwhile, and whatever fails, finds the old file or the new one. Folders are made.
    lasting: is on the disk before it takes the place, for when the machine goes down.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if lasting:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` left; nobody may be writing it now."""
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        partial.unlink(missing_ok=True)


def omma_version() -> str:
    """Of this omma, for files to say what wrote them."""
    try:
        return version("omma")
    except PackageNotFoundError:
        return "unknown"


def cache_folder() -> Path:
    """OMMA_CACHE, or omma/ in XDG_CACHE_HOME, or ~/.cache/omma."""
    if own := os.environ.get("OMMA_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "omma"
