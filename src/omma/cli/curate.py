"""`omma curate`: choose which images of a pool to keep or to label."""

from typing import Annotated

import tyro

from omma.cli import early
from omma.cli.shared import (
    As_,
    Chosen_,
    LabelDepth,
    Labels_,
    Model_,
    Place_,
    Share_,
    finished,
    say,
    skipped_lines,
)
from omma.cli.stages import Stages
from omma.core.words import count

Pool_ = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="POOL")]


def curate(
    model: Model_,
    images: Pool_,
    size: int,
    out: str,
    strategy: str = "balanced",
    seed_set: Chosen_ = None,
    exclude: Chosen_ = None,
    labelled: Chosen_ = None,
    levels: Labels_ = None,
    similarity: Share_ = None,
    exclude_similarity: float = 0.45,
    copy: Place_ = None,
    page: Place_ = None,
    work: Place_ = None,
    architecture: As_ = None,
    allow_partial: bool = False,
    label_depth: LabelDepth = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
) -> int:
    """Choose images of a pool to train on or to label, as a list that pretrain takes for IMAGES.

    The same command continues where an earlier one was stopped.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME; - for a table of vectors that another made.
        images: Images, in any form that pretrain accepts, or a table of vectors from omma embed (.parquet,
            .npz; .npy), which may be larger than memory.
        size: Images to choose.
        out: The list to write: .csv, .parquet or .jsonl.
        strategy: balanced (over clusters of clusters), coreset (cover the pool), typical (of each cluster,
            for the first labels), margin or entropy (the classifier is unsure), or random.
        seed_set: Images to be like: choose their nearest in the pool.
        exclude: Images of an evaluation, whose near-copies are left out.
        labelled: Images that have labels: the choice complements them.
        levels: Clusters of each level, the finest first, such as 10000,1000,100,10.
        similarity: Cosine above which images are copies, of which one is kept; 1 keeps all. By default it is
            so high that chance would take one image in a hundred for a copy.
        exclude_similarity: The same for --exclude.
        copy: Folder to copy the chosen images to, into one folder a class.
        page: HTML file to write, with examples of each cluster.
        work: Folder for clusters, which another size of the same pool uses again; by default they are kept
            until the list is written.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        label_depth: Folder that names the class, as for evaluate.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        seed: Seed of clusters and draws.
    """
    if model != "-":
        early.model(model)
    early.images(images)
    for source in (seed_set, exclude, labelled):
        if source is not None:
            early.images(source)
    early.answers(out)
    numbers = None if levels is None else _numbers(levels)
    with Stages(f"reading {images} ...") as stages:
        from omma.core.device import keep_memory, share_cores
        from omma.verbs.curate import curate as verb

        keep_memory()
        share_cores()
        result = verb(
            None if model == "-" else model, images, size, out, strategy=strategy, seed_set=seed_set,
            exclude=exclude, labelled=labelled, levels=numbers, similarity=similarity,
            exclude_similarity=exclude_similarity, copy=copy, page=page, work=work,
            architecture=architecture, allow_partial=allow_partial, label_depth=label_depth, device=device,
            precision=precision, seed=seed, progress=stages,
        )  # fmt: skip
    for note in result.notes:
        say(note)
    say(f"{count(result.rows, 'image')} of {result.pool:,} in {out}")
    if page is not None:
        say(f"shown in {page}")
    skipped_lines(result.bad)
    return finished(result)


def _numbers(levels: str) -> list[int]:
    try:
        return [int(number) for number in levels.split(",")]
    except ValueError:
        raise ValueError(f"--levels {levels}: give whole numbers such as 1000,100,10") from None
