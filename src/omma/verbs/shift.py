"""`omma shift`: what a probe of one domain is worth on another."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from omma import weights
from omma.core import device as devices
from omma.core import files, outputs
from omma.core.explain import translated
from omma.core.progress import StageProgress
from omma.core.protocols import ImageSource
from omma.data.sources import collection, trained_on
from omma.data.sources.layout import LabelDepth
from omma.evaluation.domains import check
from omma.evaluation.job import Job, features_cache
from omma.evaluation.judge_domains import by_domains
from omma.evaluation.shift_table import Shift
from omma.pretraining.folder import SHIFT, RunFolder
from omma.reporting import shift_page
from omma.weights import Model


@translated()
def shift(
    model: str | Path | Model,
    labelled: ImageSource,
    *,
    by: str | None = None,
    protocol: Literal["linear", "knn"] = "linear",
    align: str | None = None,
    group: str | None = None,
    label_depth: LabelDepth | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    floors: bool = True,
    architecture: str | None = None,
    allow_partial: bool = False,
    json: str | Path | None = None,
    report: str | Path | None = None,
    page: str | Path | None = None,
    cache: str | Path | Literal["auto"] | None = "auto",
    progress: StageProgress | None = None,
) -> Shift:
    """Train a probe on each domain and test it on each, on frozen features, beside the floors.

    by: the column that names domains (a site, a scanner); None: the first folders that tell images apart.
    align: "standardise", "coral" or "clusters" makes a source's features resemble the target's, without its
    labels (`evaluation.align`).
    group: the column of images that belong together, which no fold divides and which are drawn together for
    intervals; None: `sequence` where the table has it; "none": no groups.
    json: a file to write `Shift.to_json()` to; a picture is written beside it. report, or page: an HTML
    page.
    The other arguments are those of `evaluate`. A run folder also gets shift.json and shift.svg, which its
    report shows. Raises ValueError where there are no two domains with two classes in common.
    """
    check(protocol, align)
    page = report or page
    for file, option in ((json, "--json"), (page, "--report")):
        if file is not None:
            outputs.check_file(file, option)
    where = devices.pick_device(device)
    loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
    images = collection.opened(labelled, label_depth)
    job = Job(
        model=loaded,
        images=images,
        source=str(getattr(images, "source", "images")),
        device=where,
        precision=devices.pick_precision(precision, where),
        cache=features_cache(model, cache),
        seed=seed,
        floors=floors,
        progress=progress,
        text_reader=None,
        trained_on=None if isinstance(model, Model) else trained_on.read(Path(model)),
    )
    result = by_domains(job, name, by, protocol, align or "", group)
    targets = [] if json is None else [Path(json)]
    if not isinstance(model, Model) and RunFolder(Path(model)).config():
        targets.append(Path(model) / SHIFT)  # for the run's report
    content = result.to_json()
    for target in targets:
        files.write_json(target, content)
        with files.atomic_write(target.with_suffix(".svg")) as partial:
            partial.write_text(shift_page.draw(content), encoding="utf-8")
    written = [file for target in targets for file in (target, target.with_suffix(".svg"))]
    if page is not None:
        written.append(shift_page.write_page(Path(page), content))
    return replace(result, files=tuple(map(str, written)))
