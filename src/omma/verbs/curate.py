"""`omma curate`: which images of a pool to keep, to train on or to label, as a list that pretrain takes."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from omma import weights
from omma.core import device as devices
from omma.core import files, outputs
from omma.core.checks import one_of
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.core.progress import StageProgress
from omma.core.protocols import ImageSource
from omma.curation import parts, pool, selection
from omma.curation.hierarchical import silent
from omma.curation.selection import EXCLUDED, Options
from omma.curation.strategies import STRATEGIES, UNSURE
from omma.data.sources.layout import LabelDepth
from omma.features import copies, records
from omma.features.vectors import Vectors
from omma.reporting import curated
from omma.weights import Model


@dataclass(frozen=True)
class Curated(Displayed):
    """What was written."""

    path: Path
    rows: int
    pool: int  # images with vectors
    paths: tuple[str, ...] = field(repr=False)
    indices: Int[np.ndarray, "m"] = field(repr=False)  # rows of the pool
    weights: Float[np.ndarray, "m"] = field(repr=False)  # images that each stands for; nan: does not apply
    classes_before: float | None = None  # effective number of classes; None: no labels
    classes_after: float | None = None
    bad: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (path, reason) of images left out
    notes: tuple[str, ...] = ()


@translated()
def curate(
    model: str | Path | Model | None,
    images: ImageSource,
    size: int,
    out: str | Path,
    *,
    strategy: str = "balanced",
    seed_set: ImageSource | None = None,
    exclude: ImageSource | None = None,
    labelled: ImageSource | None = None,
    levels: Sequence[int] | None = None,
    similarity: float | None = None,
    exclude_similarity: float = EXCLUDED,
    copy: str | Path | None = None,
    page: str | Path | None = None,
    work: str | Path | None = None,
    label_depth: LabelDepth | None = None,
    device: str = "auto",
    precision: str = "auto",
    architecture: str | None = None,
    allow_partial: bool = False,
    seed: int = 0,
    progress: StageProgress = silent,
) -> Curated:
    """Choose `size` of the pool's images and write a list of them: .csv, .parquet or .jsonl.

    images: the pool, as `open_images` takes it, or a table of vectors (`omma embed`; .npy, .npz), which is
    read as a stream. model: makes the vectors; None for a table of which it is not known.
    strategy: "balanced" (hierarchical k-means [2405.15613], `levels` clusters, the finest level first),
    "coreset" [1708.00489], "typical" [2202.02794], "margin" or "entropy" (of the model's classifier),
    "random". seed_set: choose what is near to these instead [2304.07193]. exclude: an evaluation set, whose
    near-copies (above exclude_similarity) are left out. labelled: images that the list shall complement.
    similarity: above which images are copies, of which one is kept; None: calibrated (`repeats.calibrated`);
    1: all. copy: a folder for the chosen files. page: an HTML file of them. work: keeps what is done, for
    the same pool and levels; None: beside `out`, while needed. Raises ValueError. Others: as for evaluate.
    """
    out, options = Path(out), Options(size, strategy, levels, similarity, exclude_similarity, seed)
    records.check_ending(out)
    outputs.check_file(out)
    one_of("strategy", strategy, STRATEGIES)
    if seed_set is not None and strategy != "balanced":
        raise ValueError(f"strategy={strategy}: a seed set has a way of its own: leave one of the two out")
    if page is not None:
        outputs.check_file(page, "--page")
    where = devices.pick_device(device)
    loaded = name = None
    if model is not None:
        loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
    cached = name if isinstance(model, str | Path) else None
    extractor = pool.Extractor(loaded, cached, where, devices.pick_precision(precision, where), progress)
    opened = pool.opened(images, extractor, label_depth)
    unsure = pool.probabilities_of(opened, extractor, strategy) if strategy in UNSURE else None
    key = {"omma": files.omma_version(), "pool": opened.key}
    folder = out.with_name(f".{out.name}.parts") if work is None else Path(work)
    with ExitStack() as stack:
        saved = stack.enter_context(parts.work(folder, key, keep=work is not None))
        unit: Vectors = pool.normalised(opened, folder / "vectors.npy")
        chosen = selection.select(
            opened, unit, options, extractor, saved, seed_set=seed_set, exclude=exclude, labelled=labelled,
            probabilities=unsure,
        )  # fmt: skip
        if copy is not None:
            place = stack.enter_context(copies.folder(Path(copy), opened.readable("--copy")))
            place(*selection.folders(opened, chosen))
        selection.write(out, opened, chosen)
    if page is not None:
        curated.write(Path(page), opened, chosen)
    return Curated(
        path=out,
        rows=len(chosen.rows),
        pool=len(opened),
        paths=tuple(opened.files(chosen.rows)),
        indices=chosen.rows,
        weights=chosen.chosen.weight,
        classes_before=chosen.before and chosen.before[0],
        classes_after=chosen.after and chosen.after[0],
        bad=opened.bad,
        notes=(*opened.notes, *chosen.notes, *selection.notes_on(opened, chosen)),
    )
