"""`omma explore`: a collection as a map in the browser."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from omma.cli import early
from omma.cli.shared import As_, Images_, LabelDepth, Model_, Size_, finished, say, skipped_lines
from omma.cli.stages import Stages
from omma.core.words import count
from omma.reporting.explore.target import checked

Title_ = Annotated[str | None, tyro.conf.arg(metavar="TEXT")]


def explore(
    model: Model_,
    images: Images_,
    out: str,
    format: Literal["page", "atlas", "tensorboard"] = "page",
    labelled: bool = False,
    layout: Literal["auto", "umap", "pca"] = "auto",
    clusters: Size_ = None,
    neighbours: int = 10,
    alike: float = 0.95,
    thumbnails: Size_ = None,
    title: Title_ = None,
    architecture: As_ = None,
    allow_partial: bool = False,
    label_depth: LabelDepth = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
) -> int:
    """Write a map of the collection for a browser: thumbnails, neighbours, duplicates, suspects.

    The page loads nothing from elsewhere. Images near each other on the map are alike to the model.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        images: Images, in any form that pretrain accepts; labels and a table's columns become colours.
        out: The page to write, *.html with everything in it, or a folder with thumbnails beside the page (for
            more than some 20,000 images); for atlas a *.parquet, for tensorboard a folder.
        format: page, atlas (a table for embedding-atlas) or tensorboard (for its projector).
        labelled: Refuse images without labels.
        layout: umap, pca, or auto: UMAP if it is installed (the extra `map`).
        clusters: Clusters of k-means; by default chosen by the number of images.
        neighbours: Nearest images that are kept of each.
        alike: Cosine from which two images are listed as near-equal.
        thumbnails: Pixels of a thumbnail's longer side; by default as many as the page has room for.
        title: Of the page; by default the collection's name.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        label_depth: Folder that names the class, as for evaluate.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        seed: Of the map and the clusters; the same seed gives the same page.
    """
    early.model(model)
    early.images(images)
    checked(Path(out), format, thumbnails)
    with Stages(f"reading {images} ...") as stages:
        from omma.core.device import keep_memory, share_cores
        from omma.verbs.explore import explore as verb

        keep_memory()
        share_cores()
        result = verb(
            model, images, out, format=format, labelled=labelled, layout=layout, clusters=clusters,
            neighbours=neighbours, alike=alike, thumbnails=thumbnails, title=title, seed=seed,
            label_depth=label_depth, device=device, precision=precision, architecture=architecture,
            allow_partial=allow_partial, progress=stages,
        )  # fmt: skip
    for note in result.notes:
        say(note)
    found = [count(len(result.cluster_names), "cluster"), count(len(result.pairs), "near-equal pair")]
    if len(result.suspects):
        found.append(f"{count(len(result.suspects), 'label')} that neighbours do not share")
    say(f"{count(len(result.indices), 'image')}: {', '.join(found)}")
    say(f"written to {result.path} ({result.bytes / 1e6:.1f} MB)")
    skipped_lines(result.bad)
    return finished(result)
