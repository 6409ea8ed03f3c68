"""What `explore` writes, put in place as a whole."""

import os

import numpy as np
from jaxtyping import Float

from omma.core import files, outputs
from omma.core.progress import Progress
from omma.core.protocols import Images
from omma.data.sources.labels import remedy
from omma.reporting.explore import exports, page
from omma.reporting.explore.analysis import Analysis
from omma.reporting.explore.page import Content
from omma.reporting.explore.target import Target


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
