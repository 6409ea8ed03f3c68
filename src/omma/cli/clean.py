"""`omma clean`: what is wrong with a collection, before anybody learns from it."""

from typing import Annotated

import tyro

from omma.cli import early
from omma.cli.shared import As_, Chosen_, File_, Images_, LabelDepth, Place_, finished, say
from omma.cli.stages import Stages
from omma.core.words import count

Apply_ = Annotated[tuple[str, ...], tyro.conf.arg(metavar="list|copy DIR")]
Kinds_ = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FINDING ...")]


def clean(
    images: Images_,
    out: str,
    model: Place_ = None,
    against: Chosen_ = None,
    page: File_ = None,
    apply: Apply_ = (),
    remove: Kinds_ = ("broken", "leakage", "blank", "duplicate"),
    architecture: As_ = None,
    allow_partial: bool = False,
    label_depth: LabelDepth = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
) -> int:
    """List what is wrong with images: broken, blank, dark, bright, blurred, odd-sized, copies, and leakage.

    With a model also copies that only its features show, outliers, and wrong labels (confident learning on
    probabilities of classifiers that have not seen the image). Nothing is deleted.

    Args:
        images: Images, in any form that pretrain accepts.
        out: The table to write, a row a finding: .csv, .parquet or .jsonl.
        model: Run folder, weights file, timm:NAME or hf:NAME whose features are used.
        against: Other images, such as those of a test set: copies of them are listed as leakage.
        page: An .html file to write with pictures of what was found.
        apply: list: write NAME-keep.csv (a table to use as IMAGES) and NAME-remove.csv beside the table; copy
            DIR: copy the images that are kept. Images of a test part are always kept.
        remove: Findings whose images are left out by --apply: broken, leakage, mislabelled, blank, duplicate,
            dark, bright, blurred, odd-sized, outlier.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        label_depth: Folder that names the class, as for evaluate.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        seed: Of the folds that images are divided into.
    """
    early.images(images)
    early.answers(out)
    if model is not None:
        early.model(model)
    if against is not None:
        early.images(against)
    with Stages(f"reading {images} ...") as stages:
        from omma.core.device import keep_memory, share_cores
        from omma.verbs.clean import clean as verb

        keep_memory()
        share_cores()
        result = verb(
            images, out, model=model, against=against, page=page, apply=apply, remove=remove,
            label_depth=label_depth, device=device, precision=precision, architecture=architecture,
            allow_partial=allow_partial, seed=seed, progress=stages,
        )  # fmt: skip
    for note in result.notes:
        say(note)
    for kind, number in result.counts.items():
        say(result.thresholds.get(kind, ""), f"{number:,} {kind}", indent=20)
    share = f" ({result.flagged / max(result.images, 1):.1%})"
    say(f"{count(result.flagged, 'image')} of {result.images:,} with a finding{share}, in {out}")
    if result.removed is not None:
        say(f"left out: {count(result.removed, 'image')}; nothing was deleted")
    for place in result.written:
        say(f"written to {place}")
    return finished(result)
