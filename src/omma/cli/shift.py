"""`omma shift`: what a probe of one domain is worth on another."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from omma.cli import early
from omma.cli.shared import (
    As_,
    Column_,
    File_,
    LabelDepth,
    Labelled_,
    Model_,
    finished,
    fits,
    laid_out,
    out,
    say,
    show,
    skipped_lines,
)
from omma.cli.stages import Stages
from omma.core import outputs

Protocol_ = Annotated[Literal["linear", "knn"], tyro.conf.arg(metavar="linear|knn")]
Align_ = Annotated[str | None, tyro.conf.arg(metavar="coral|clusters|standardise")]


def shift(
    model: Model_,
    labelled: Labelled_,
    by: Column_ = None,
    protocol: Protocol_ = "linear",
    align: Align_ = None,
    group: Column_ = None,
    report: File_ = None,
    json: File_ = None,
    label_depth: LabelDepth = None,
    floors: bool = True,
    architecture: As_ = None,
    allow_partial: bool = False,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
) -> int:
    """Train a probe on each domain (site, scanner, style) and test it on each: how far do labels carry?

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        labelled: Images with class folders or a label column.
        by: Column of the table that names the domain; without it, the first folders: photo/dog, sketch/dog.
        protocol: The probe: linear, whose penalty is chosen on images held out of the source, or knn.
        align: Also change the source's features to resemble the target's, without labels of the target:
            standardise (means and deviations), coral (covariances as well), clusters (class means as well).
        group: Column of images that belong together, such as sequence: they are never on both sides, and are
            drawn together for intervals; none: no groups. By default sequence, where the table has it.
        report: HTML page with the matrices; a run's own report has them anyway.
        json: File to write the results to; a picture is written beside it.
        label_depth: Folder that names the class, as for evaluate: -1 where domains are folders above it.
        floors: Also raw pixels and the untrained network, as baselines.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        seed: Seed of folds and of the untrained network's weights.
    """
    early.model(model)
    early.images(labelled)
    for file, option in ((json, "--json"), (report, "--report")):
        if file is not None:
            outputs.check_file(file, option)
    with Stages(f"reading {labelled} ...") as stages:
        from omma.core.device import keep_memory
        from omma.verbs.shift import shift as verb

        keep_memory()
        result = verb(
            model, labelled, by=by, protocol=protocol, align=align, group=group, label_depth=label_depth,
            floors=floors, architecture=architecture, allow_partial=allow_partial, json=json, report=report,
            device=device, precision=precision, seed=seed, progress=stages,
        )  # fmt: skip
    for heads, rows in (*map(result.table, result.matrices), result.summary()):
        table = laid_out(heads, rows)
        if not fits(table, out):  # intervals below the values
            table = laid_out(heads, [[cell.replace(" (", "\n(", 1) for cell in row] for row in rows])
        say("")
        show(table)
    say("")
    for text in (result.verdict(), result.protocol(), *result.notes):
        say(text)
    skipped_lines(result.about.skipped)
    for file in result.files:
        say(f"written to {file}")
    if (Path(model) / "metrics.jsonl").exists():  # a run folder
        from omma.cli.judge import report_beside

        report_beside(model, labelled, seed, label_depth)
    return finished(result)
