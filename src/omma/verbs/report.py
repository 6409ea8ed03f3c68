"""`omma report`: the page of a run, drawn again with other images or after an evaluation."""

from pathlib import Path

from omma.core.explain import translated
from omma.data.sources import collection
from omma.data.sources.collection import IndexedImages
from omma.pretraining.folder import RunFolder
from omma.reporting import run_report


@translated()
def report(run: str | Path, images: str | Path | IndexedImages, *, seed: int = 0) -> Path:
    """Write report.html of a finished run, with pictures of `images`; returns its path.

    Figures are those of the run's evaluation.json, if it was evaluated. Raises ValueError.
    """
    folder = RunFolder(Path(run))
    if not folder.finished:
        raise ValueError(f"{run} is no finished run: pretrain to the end first, or give its folder")
    gallery = collection.checked(
        images if isinstance(images, IndexedImages) else collection.open_images(images)
    )
    return run_report.write_report(folder, gallery, seed)
