"""Everything that is looked for in a collection, one after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from omma import weights
from omma.core import device as devices
from omma.core.protocols import Images, Inaccessible
from omma.core.words import count
from omma.curation import mislabelled, outliers, quality
from omma.curation.findings import Finding, ordered
from omma.curation.robust import FEW
from omma.data.sources import label_sets, trained_on
from omma.data.sources.collection import IndexedImages, none_readable
from omma.data.sources.names import NO_IMAGE
from omma.data.sources.values import input_notes
from omma.features.extract import FeatureSet
from omma.weights.model import Model
from omma.weights.vectors import vectors_of

Progress = Callable[[str, int, int], None]  # stage, images done, images in total


@dataclass(frozen=True)
class Survey:
    """The findings in the table's order, and how they were decided."""

    findings: tuple[Finding, ...]
    thresholds: dict[str, str]
    notes: tuple[str, ...]
    model: str  # its name; "" without one


def survey(
    images: Images,
    model: str | Path | Model | None = None,
    against: Images | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    architecture: str | None = None,
    allow_partial: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Survey:
    """Look for all findings that can be found: those of pixels, and with a model those of features."""
    where = devices.pick_device(device)
    loaded, name = None, ""
    if model is not None:
        loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
    measured = quality.measure(images, progress=_stage(progress, "looking at images"))
    if not len(measured.rows):
        bad = [(images.path(row), reason) for row, reason in measured.bad]
        raise ValueError(none_readable(str(getattr(images, "source", "images")), len(images), bad))
    judged = quality.judge(measured, images)
    found = [*_skipped(images), *judged.findings]
    thresholds, notes = dict(judged.thresholds), [*getattr(images, "notes", ()), *judged.notes]
    groups = np.arange(len(images))
    if loaded is not None:
        features = vectors_of(
            loaded, images, where, devices.pick_precision(precision, where),
            source=None if isinstance(model, Model) else model, progress=_stage(progress, "embedding"),
        )  # fmt: skip
        notes += [*loaded.provenance.get("loaded", ()), *input_notes(images, loaded.preprocess)]
        for part in (_outliers(features, groups), _labels(images, features, groups, seed)):
            found += part.findings
            thresholds |= part.thresholds
            notes += part.notes
        notes += _seen_before(loaded, model, images)
    else:
        notes.append("without --model, outliers and wrong labels are not looked for")
    return Survey(tuple(ordered(found)), thresholds, tuple(notes), name)


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return None if progress is None else partial(progress, stage)


def _skipped(images: Images) -> list[Finding]:
    """Files of the source that may have been meant as images."""
    return [
        Finding(-1, "inaccessible" if Inaccessible.is_reason(why) else "broken", 1.0, why, path=path)
        for path, why in getattr(images, "skipped", ())
        if why != NO_IMAGE
    ]


def _outliers(features: FeatureSet, groups: Int[np.ndarray, "n"]) -> quality.Judged:
    own = groups[features.indices]
    if len(np.unique(own)) < FEW:
        return quality.Judged((), {}, (f"fewer than {FEW} different images: outliers are not looked for",))
    found = outliers.find(features.vectors, own)
    how = (
        f"mean cosine distance to the {outliers.NEIGHBOURS} nearest images above {found.limit:.3f}: {outliers.CUT} "
        f"robust deviations of its logarithm above the median"
    )
    findings = [
        Finding(
            int(features.indices[k]),
            "outlier",
            float(found.deviations[k]),
            f"mean distance {found.distance[k]:.3f}",
        )
        for k in np.flatnonzero(found.flagged)
    ]
    return quality.Judged(tuple(findings), {"outlier": how})


def _labels(images: Images, features: FeatureSet, groups: Int[np.ndarray, "n"], seed: int) -> quality.Judged:
    """Wrong labels; nothing without labels of two classes."""
    own, sets = groups[features.indices], label_sets.of(images)
    if sets is not None:
        found = mislabelled.find_sets(features.vectors, sets[features.indices], own, seed)
    elif images.labels is None or len(np.unique(images.labels[images.labels >= 0])) < 2:
        return quality.Judged((), {}, ("no labels of two classes: wrong labels are not looked for",))
    else:
        found = mislabelled.find(features.vectors, images.labels[features.indices], own, seed)
    findings = []
    for k in np.flatnonzero(found.flagged):
        row, label = int(features.indices[found.rows[k]]), images.classes[found.classes[k]]
        given, suggested = label, images.classes[found.suggested[k]] if sets is None else f"not {label}"
        if sets is not None and found.suggested[k]:
            given, suggested = suggested, given
        by = "of its neighbours' votes" if found.by_neighbours[k] else "by a probe that has not seen it"
        detail = f"given {given}: {found.confidence[k]:.3f}, suggested {suggested}: {found.probability[k]:.3f}, {by}"
        score = 1 - float(found.confidence[k])
        probability = float(found.probability[k])
        findings.append(
            Finding(
                row, "mislabelled", score, detail, given=given, suggested=suggested, probability=probability
            )
        )
    how = (
        f"confident learning on out-of-fold probabilities ({mislabelled.FOLDS} folds, copies on one side): as many "
        "labels as it counts as wrong, the least probable first"
    )
    return quality.Judged(tuple(findings), {"mislabelled": how}, found.notes)


def _seen_before(loaded: Model, model: str | Path | Model | None, images: Images) -> list[str]:
    """A note where the model has learned from labels of these images."""
    if loaded.classifier is None or isinstance(model, Model) or model is None:
        return []
    known = trained_on.read(Path(model)) if Path(model).exists() else None
    if known is None or not isinstance(images, IndexedImages) or not (seen := known.among(images)):
        return []
    return [
        f"the model has learned from labels of {count(seen, 'of these images', 'of these images')}: wrong labels that it "
        "knows by heart are not found; give the model that it was fine-tuned from"
    ]
