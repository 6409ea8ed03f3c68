"""`omma report`: the page of a run, drawn again with other images or after an evaluation."""

from pathlib import Path

from omma.core import outputs
from omma.core.explain import translated
from omma.core.progress import StageProgress
from omma.core.protocols import ImageSource
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.evaluation.verdict import Evaluation
from omma.pretraining.folder import RunFolder
from omma.reporting import evaluation_report, run_report


@translated()
def report(
    run: str | Path,
    images: ImageSource,
    *,
    seed: int = 0,
    label_depth: LabelDepth | None = None,
    domains: str | None = None,
    progress: StageProgress | None = None,
) -> Path:
    """Write report.html of a finished run, with pictures of `images`; returns its path.

    Results are those of the run's evaluation.json, if it was evaluated. Images that cannot be read, or that
    the network cannot take, are left out of the pictures. label_depth, progress: as for evaluate. domains: a
    column of the images' table, such as `domain`: labels of each value classify the images of each other.
    Raises ValueError.
    """
    folder = RunFolder(Path(run))
    if not folder.finished:
        raise ValueError(f"{run} is no finished run: pretrain to the end first, or give its folder")
    outputs.check_file(folder.report, "a copy of the run")
    return run_report.write_report(folder, collection.opened(images, label_depth), seed, progress, domains)


@translated()
def report_evaluation(
    evaluation: Evaluation,
    images: ImageSource,
    file: str | Path,
    *,
    label_depth: LabelDepth | None = None,
) -> Path:
    """Write the page of an evaluation of any model, with examples of confused classes; returns its path.

    images, label_depth: as they were evaluated. Raises ValueError.
    """
    outputs.check_file(file, "--report")
    return evaluation_report.write_report(Path(file), evaluation, collection.opened(images, label_depth))
