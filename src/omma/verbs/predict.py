"""`omma predict`: the class of each image, how sure, and whether it is sure enough, as a table."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from omma import weights
from omma.core import device as devices
from omma.core import outputs
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.core.protocols import ImageSource
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.data.sources.values import input_notes
from omma.evaluation.calibration import limit
from omma.features import copies, records
from omma.features.extract import prepare, stream
from omma.features.table import as_text
from omma.weights import Model, answers
from omma.weights.answers import Truth, numbered, origin


@dataclass(frozen=True)
class Predicted(Displayed):
    """What was written."""

    path: Path
    rows: int
    abstained: int  # images whose answer is not sure enough
    right: int | None  # images whose class is that of their label; None without labels
    labelled: int  # images with a label
    bad: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (path, reason) of images left out
    notes: tuple[str, ...] = ()


@translated()
def predict(
    model: str | Path | Model,
    images: ImageSource,
    out: str | Path,
    *,
    top: int = 2,
    error: float | None = None,
    threshold: float | None = None,
    copy: str | Path | None = None,
    label_depth: LabelDepth | None = None,
    device: str = "auto",
    precision: str = "auto",
    architecture: str | None = None,
    allow_partial: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Write the classes of all readable images, in order, to `out`: .csv, .parquet or .jsonl.

    Columns: `answers.schema`; probabilities are calibrated where the model was fine-tuned by omma. `abstain`
    is true where the first class's probability is below the threshold that keeps the error of the other
    answers (`calibration.abstention`).
    top: classes an image, at least 2. error: share of wrong answers that is allowed; .05 by default.
    threshold: instead, a probability; with several labels an image, that of every class. copy: a folder to
    copy the files to, into a folder for each class and `_abstain`. Others: as for evaluate. Raises ValueError
    for a model without classifier, where no threshold keeps the error, and where no image can be read.
    """
    records.check_ending(out)
    outputs.check_file(out)
    where = devices.pick_device(device)
    loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
    classifier = loaded.classifier
    if classifier is None:
        raise ValueError(f"{name} has no classifier: train one with `omma finetune {name} LABELLED`")
    unsure = limit(classifier, error, threshold)
    if copy is not None and classifier.multi_label:
        raise ValueError(f"--copy {copy}: needs one class an image, and this classifier gives several")
    top = min(max(top, 2), max(len(classifier.classes), 2))
    opened = collection.opened(images, label_depth)
    labels = Truth(opened, classifier)
    schema = answers.schema(classifier, top, labels.any, origin(loaded, unsure.threshold))
    network = prepare(loaded.encoder, where, devices.pick_precision(precision, where))
    rows = abstained = right = labelled = 0
    bad: list[tuple[str, str]] = list(getattr(opened, "skipped", ()))
    skipped = len(bad)
    with ExitStack() as stack:
        write = stack.enter_context(records.writer(Path(out), schema))
        place = None if copy is None else stack.enter_context(copies.folder(Path(copy), opened))
        for batch in stream(network, opened, loaded.preprocess, of=classifier, whole=True):
            bad += batch.bad
            if len(batch.indices):
                found = answers.columns(classifier, batch.vectors, top, unsure.threshold)
                found["path"] = [as_text(opened.path(int(i))) for i in batch.indices]
                if labels.any:
                    found["label"] = labels.names(batch.indices)
                write(pa.table([pa.array(found[f.name], f.type) for f in schema], schema=schema))
                rows += len(batch.indices)
                abstained += sum(map(bool, found.get("abstain", ())))
                correct = labels.correct(batch.indices, found)
                right, labelled = right + int(correct.sum()), labelled + len(correct)
                if place is not None:
                    place(batch.indices.tolist(), _folders(found))
            if progress:
                progress(rows + len(bad) - skipped, len(opened))
        if rows == 0:
            raise ValueError(collection.none_readable(collection.named(images), len(opened), bad))
    return Predicted(
        path=Path(out),
        rows=rows,
        abstained=abstained,
        right=right if labelled else None,
        labelled=labelled,
        bad=tuple(bad),
        notes=(
            *loaded.provenance.get("loaded", ()),
            *input_notes(opened, loaded.preprocess),
            *unsure.notes,
            *labels.notes(),
            *numbered(loaded.extras),
        ),
    )


def _folders(found: dict[str, Any]) -> list[str]:
    return [copies.ABSTAIN if out else name for name, out in zip(found["class"], found["abstain"])]
