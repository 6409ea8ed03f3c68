"""What `explore` writes and where: checked before the work, and put in place as a whole after it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from omma.core import files, outputs
from omma.core.checks import one_of
from omma.core.protocols import Images
from omma.data.sources.labels import remedy
from omma.reporting.explore import exports, page, sprite
from omma.reporting.explore.analysis import Analysis
from omma.reporting.explore.page import Content
from omma.reporting.explore.sprite import Progress

Format = Literal["page", "atlas", "tensorboard"]
OWN = {"index.html", "thumbnails"}  # what a page's folder holds: one that holds no more is replaced


@dataclass(frozen=True)
class Target:
    """A file or folder to write, of one of the formats; side: of thumbnails in pixels, None to choose."""

    out: Path
    format: Format
    folder: bool
    side: int | None


def checked(out: Path, format: Format, side: int | None = None) -> Target:
    """What to write. Raises ValueError for an unknown format, a name that does not fit it, and where no file
    can be written."""
    one_of("format", format, get_args(Format))
    sprite.check_side(side)
    suffix = out.suffix.lower()
    if format == "atlas" and suffix != ".parquet":
        raise ValueError(f"{out}: the format atlas is one file; name it *.parquet")
    folder = format == "tensorboard" or (format == "page" and suffix not in (".html", ".htm"))
    if not folder:
        outputs.check_file(out)
        return Target(out, format, False, side)
    own = OWN if format == "page" else set()
    if out.is_file() or (out.is_dir() and {entry.name for entry in out.iterdir()} - own):
        raise ValueError(f"{out} is there already: name a new folder with --out" + " or a *.html" * bool(own))
    outputs.check_folder(out)
    return Target(out, format, True, side)


def require_labels(images: Images, source: object) -> None:
    """Raise ValueError, with a remedy, for a collection without labels."""
    if images.labels is None and getattr(images, "label_sets", None) is None:
        raise ValueError(f"{source}: no labels, which --labelled asks for; {remedy(images)}")


def write(
    target: Target,
    images: Images,
    vectors: Float[np.ndarray, "n d"],
    analysis: Analysis,
    content: Content,
    progress: Progress | None = None,
) -> int:
    """Write the map; the bytes of all that is written. images and vectors: the analysis's, in its order."""
    out, side = target.out, target.side
    if target.format == "atlas":
        return exports.atlas(out, images, analysis, content.facets, side=side, progress=progress)
    if not target.folder:
        return page.write(out, images, analysis, content, side=side, progress=progress)
    with outputs.temporary_folder(out) as partial:
        made = partial / "made"
        made.mkdir()
        if target.format == "page":
            size = page.write_folder(made, out, images, analysis, content, side=side, progress=progress)
        else:
            size = exports.tensorboard(made, images, vectors, content.facets, side=side, progress=progress)
        files.set_default_modes(made)
        if out.is_dir():
            os.replace(out, partial / "before")  # which goes with the temporary folder
        os.replace(made, out)
    return size
