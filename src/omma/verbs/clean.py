"""`omma clean`: faults, copies, outliers and wrong labels of a collection, as a table and a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omma.core import outputs
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.core.progress import StageProgress
from omma.core.protocols import ImageSource
from omma.curation import findings, kept, survey
from omma.curation.findings import CERTAIN, Finding
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.features import copies, records
from omma.reporting import clean_page
from omma.weights import Model


@dataclass(frozen=True)
class Cleaned(Displayed):
    """What was found and written."""

    path: Path
    images: int
    counts: dict[str, int]  # images with each finding, the most important first
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    removed: int | None = None  # images that lists or copies leave out; None: nothing was applied
    written: tuple[Path, ...] = ()  # page, lists or folder
    thresholds: dict[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def flagged(self) -> int:
        """Images with any finding."""
        return len({(each.row, each.path) for each in self.findings})


@translated()
def clean(
    images: ImageSource,
    out: str | Path,
    *,
    model: str | Path | Model | None = None,
    against: ImageSource | None = None,
    page: str | Path | None = None,
    apply: str | Sequence[str] | None = None,
    remove: Sequence[str] = CERTAIN,
    label_depth: LabelDepth | None = None,
    device: str = "auto",
    precision: str = "auto",
    architecture: str | None = None,
    allow_partial: bool = False,
    seed: int = 0,
    progress: StageProgress | None = None,
) -> Cleaned:
    """Write what is wrong with a collection to `out` (.csv, .parquet or .jsonl), the most important first.

    Without a model: broken, blank, dark, bright, blurred and odd-sized images, copies, and copies across the
    collection's split. With one also copies that only its features show, outliers and wrong labels. Columns:
    `findings.write`.
    against: another collection; copies of its images are leakage. page: an .html file with pictures.
    apply: "list" writes NAME-keep.csv and NAME-remove.csv beside `out`, ("copy", DIR) copies the images that
    are kept. Nothing is deleted, and images of a test part are only reported. remove: the findings whose
    images are left out (`findings.KINDS`). Others: as for evaluate. Raises ValueError if none can be read.
    """
    records.check_ending(out)
    kept.check_kinds(remove)
    how, folder = kept.application(apply)
    out, page = Path(out), None if page is None else Path(page)
    for file in (out, page, *(kept.lists_of(out) if how == "list" else ())):
        if file is not None:
            outputs.check_file(file)
    opened = collection.opened(images, label_depth)
    if folder is not None:
        copies.check(folder, opened, "--apply copy")
    other = None if against is None else collection.opened(against)
    through = model if model is None else survey.lens(model, device, precision, architecture, allow_partial)
    seen = survey.survey(opened, through, other, seed=seed, progress=progress)
    findings.write(out, seen.findings, opened)
    gone = kept.removed(opened, seen.findings, remove) if how else {}
    written, notes = list[Path](), list(seen.notes)
    if how == "list":
        written, more = kept.write_lists(out, opened, gone)
        notes += more
    elif folder is not None:
        rows = kept.rest(opened, gone)
        notes += kept.copy(folder, opened, rows, progress=None if progress is None else _copying(progress))
        written.append(folder)
    removed = len(gone) if how else None
    if page is not None:
        clean_page.write_page(
            page, opened, seen.findings, thresholds=seen.thresholds, notes=notes, against=other,
            removed=removed, model=seen.model,
        )  # fmt: skip
        written.insert(0, page)
    return Cleaned(
        path=out,
        images=len(opened),
        counts=findings.counted(seen.findings),
        findings=seen.findings,
        removed=removed,
        written=tuple(written),
        thresholds=seen.thresholds,
        notes=tuple(notes),
    )


def _copying(progress: StageProgress) -> Callable[[int, int], None]:
    return lambda done, total: progress("copying", done, total)
