"""Where the map goes, checked before the work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from omma.core import outputs
from omma.core.checks import one_of
from omma.core.errors import need

Format = Literal["page", "atlas", "tensorboard"]
OWN = {"index.html", "thumbnails"}  # what a page's folder holds: one that holds no more is replaced
LARGEST, SMALLEST = 192, 16  # pixels of a thumbnail's longer side


@dataclass(frozen=True)
class Target:
    """A file or folder to write, of one of the formats; side: of thumbnails in pixels, None to choose."""

    out: Path
    format: Format
    folder: bool
    side: int | None = None


def checked(out: Path, format: Format, side: int | None = None) -> Target:
    """What to write.

    Raises ValueError for an unknown format, a name that does not fit it, a size that thumbnails cannot have,
    and a place where nothing can be written or other files lie.
    """
    one_of("format", format, get_args(Format))
    if side is not None and not SMALLEST <= side <= LARGEST:
        raise ValueError(f"thumbnails={side}: must be from {SMALLEST} to {LARGEST} pixels, the longer side")
    if format == "tensorboard":
        need("tensorboard", "tensorboard")
    suffix = out.suffix.lower()
    if format == "atlas" and suffix != ".parquet":
        raise ValueError(f"{out}: the format atlas is one file; name it *.parquet")
    if format == "atlas" or (format == "page" and suffix in (".html", ".htm")):
        outputs.check_file(out)
        return Target(out, format, False, side)
    own = OWN if format == "page" else set()
    if out.is_file() or (out.is_dir() and {entry.name for entry in out.iterdir()} - own):
        raise ValueError(f"{out} is there already: name a new folder{' or a *.html' * bool(own)} with --out")
    outputs.check_folder(out)
    return Target(out, format, True, side)
