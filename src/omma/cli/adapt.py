"""Commands that make and use classifiers: `omma finetune` and `omma predict`."""

from functools import partial
from typing import Any

from omma.adaptation.request import FineTuning
from omma.cli import early
from omma.cli.shared import (
    As_,
    Dotted,
    Images_,
    LabelDepth,
    Labelled_,
    Model_,
    Place_,
    Share_,
    finished,
    say,
    skipped_lines,
)
from omma.cli.stages import Stages
from omma.cli.train import as_command, trained
from omma.core.words import count


@as_command(FineTuning, model=Model_, images=Labelled_)
def finetune(dotted: Dotted = None, **options: Any) -> int:
    """Its signature and help are the fields of `FineTuning`; dotted: `--method.KEY`, `--adapt.KEY`, ..."""
    own = dotted or {}
    options |= {
        "options": own.get("method"),
        "model_options": own.get("model"),
        "adapt_options": own.get("adapt"),
    }
    early.model(str(options["model"]))
    early.pretraining(FineTuning(**options).request())
    return trained("finetune", **options)


def predict(
    model: Model_,
    images: Images_,
    out: str,
    top: int = 2,
    error: Share_ = None,
    threshold: Share_ = None,
    copy: Place_ = None,
    move: Place_ = None,
    architecture: As_ = None,
    allow_partial: bool = False,
    label_depth: LabelDepth = None,
    device: str = "auto",
    precision: str = "auto",
) -> int:
    """Write the class of each image, how sure that is, the runner-up, and whether to abstain.

    Probabilities are calibrated on held-out images if `omma finetune` made the classifier.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME with a classifier.
        images: Images, in any form that pretrain accepts. If they have labels, the accuracy is printed.
        out: The table to write: .csv, .parquet or .jsonl.
        top: Classes an image, at least 2.
        error: Share of wrong answers that is allowed (.05): less sure images abstain, so that the others keep
            it, as far as held-out images tell.
        threshold: Instead, the probability below which images abstain; with several labels an image, that
            from which a class is answered.
        copy: Folder to copy the images to, into one folder a class; those that abstain go to _abstain.
        move: Refused: images are copied, not moved, since an answer may be wrong.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        label_depth: Folder that names the class, as for evaluate.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
    """
    if move is not None:
        raise ValueError(
            "--move: omma moves no images, since answers may be wrong: --copy DIR leaves yours in place"
        )
    early.model(model)
    early.images(images)
    early.answers(out)
    with Stages(f"reading {images} ...") as stages:
        from omma.core.device import keep_memory, share_cores
        from omma.verbs.predict import predict as verb

        keep_memory()
        share_cores()
        result = verb(
            model, images, out, top=top, error=error, threshold=threshold, copy=copy, label_depth=label_depth,
            device=device, precision=precision, architecture=architecture, allow_partial=allow_partial,
            progress=partial(stages, "classifying"),
        )  # fmt: skip
    for note in result.notes:
        say(note)
    abstained = f", {result.abstained:,} of which abstain" if result.abstained else ""
    say(f"{count(result.rows, 'image')} in {out}{abstained}")
    if result.right is not None:
        say(f"right: {result.right:,} of {result.labelled:,} labelled ({result.right / result.labelled:.1%})")
    skipped_lines(result.bad)
    return finished(result)
