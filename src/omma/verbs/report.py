"""`omma report`: the page of a run, drawn again with other images or after an evaluation."""

from pathlib import Path

from omma.data.sources import collection
from omma.data.sources.collection import IndexedImages
from omma.data.sources.layout import LabelDepth
from omma.pretraining.folder import RunFolder
from omma.reporting import run_report


def report(
    run: str | Path,
    images: str | Path | IndexedImages,
    *,
    seed: int = 0,
    label_depth: LabelDepth | None = None,
) -> Path:
    """Write report.html of a finished run, with pictures of `images`; returns its path.

    Figures are those of the run's evaluation.json, if it was evaluated. label_depth: as for evaluate.
    Raises ValueError.
    """
    folder = RunFolder(Path(run))
    if not folder.finished:
        raise ValueError(f"{run} is no finished run: pretrain to the end first, or give its folder")
    if not isinstance(images, IndexedImages):
        images = collection.open_images(images, label_depth=label_depth)
    return run_report.write_report(folder, collection.checked(images), seed)
