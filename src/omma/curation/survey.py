"""Everything that is looked for in a collection, one after the other."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omma import weights
from omma.core import device as devices
from omma.core.progress import Progress, StageProgress
from omma.core.protocols import Images, Inaccessible
from omma.core.words import count
from omma.curation import copied, featured, quality
from omma.curation.findings import Finding, ordered
from omma.data.sources import trained_on
from omma.data.sources.collection import none_readable
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.names import NO_IMAGE
from omma.data.sources.values import input_notes
from omma.features.extract import FeatureSet
from omma.weights.cached_features import cached_features
from omma.weights.model import Model


@dataclass(frozen=True)
class Survey:
    """The findings in the table's order, and how they were decided."""

    findings: tuple[Finding, ...]
    thresholds: dict[str, str]
    notes: tuple[str, ...]
    model: str  # its name; "" without one


@dataclass(frozen=True)
class Lens:
    """What embeds images: a model on a device."""

    model: Model
    name: str
    source: str | Path | None  # what its cache is found by
    device: str
    precision: str

    def __call__(self, images: Images, progress: Progress | None) -> FeatureSet:
        where = devices.pick_device(self.device)
        precision = devices.pick_precision(self.precision, where)
        return cached_features(self.model, images, where, precision, source=self.source, progress=progress)


def lens(
    model: str | Path | Model, device: str, precision: str, architecture: str | None, allow_partial: bool
) -> Lens:
    """Load a model to look through; raises as `weights.load` does."""
    loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
    return Lens(loaded, name, None if isinstance(model, Model) else model, device, precision)


def survey(
    images: Images,
    through: Lens | None = None,
    against: Images | None = None,
    *,
    seed: int = 0,
    progress: StageProgress | None = None,
) -> Survey:
    """Look for all that can be found: by pixels, and through a model by features.

    against: another collection, whose copies among the images are leakage.
    """

    def stage(name: str) -> Progress | None:
        return None if progress is None else partial(progress, name)

    measured = quality.measure(images, progress=stage("looking at images"))
    if not len(measured.rows):
        bad = [(images.path(row), reason) for row, reason in measured.bad]
        raise ValueError(none_readable(str(getattr(images, "source", "images")), len(images), bad))
    parts = [
        quality.Judged(_skipped(images), {}, tuple(getattr(images, "notes", ()))),
        quality.judge(measured),
    ]
    features = embed = others = None
    if through is not None:
        features, embed = through(images, stage("embedding")), through.model.embed
    judged, groups = copied.find(images, features, embed, seed, stage("looking for copies"))
    parts.append(judged)
    if against is not None:
        if through is not None:
            others = through(against, stage("embedding the other collection"))
        looking = stage("looking for copies of the other collection")
        parts.append(copied.find_against(images, against, features, others, seed, looking))
    if features is None or through is None:
        parts.append(
            quality.Judged((), {}, ("without --model, outliers and wrong labels are not looked for",))
        )
    else:
        parts += [featured.odd(features, groups), featured.wrong_labels(images, features, groups, seed)]
        parts.append(quality.Judged((), {}, (*_notes(through, images),)))
    thresholds = {kind: how for part in parts for kind, how in part.thresholds.items()}
    findings = ordered(each for part in parts for each in part.findings)
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    return Survey(tuple(findings), thresholds, tuple(notes), "" if through is None else through.name)


def _skipped(images: Images) -> tuple[Finding, ...]:
    """Files of the source that may have been meant as images."""
    return tuple(
        Finding(-1, "inaccessible" if Inaccessible.is_reason(why) else "broken", 1.0, why, path=path)
        for path, why in getattr(images, "skipped", ())
        if why != NO_IMAGE
    )


def _notes(through: Lens, images: Images) -> list[str]:
    """On the model's file and the images' values, and where it has learned from labels of these images."""
    loaded = through.model
    notes = [*loaded.provenance.get("loaded", ()), *input_notes(images, loaded.preprocess)]
    if loaded.classifier is None or through.source is None or not isinstance(images, IndexedImages):
        return notes
    known = trained_on.read(Path(through.source)) if Path(through.source).exists() else None
    if known is not None and (seen := known.among(images)):
        seen_before = count(seen, "of these images", "of these images")
        notes.append(
            f"the model has learned from labels of {seen_before}: wrong labels that it knows by heart are "
            "not found; give the model that it was fine-tuned from"
        )
    return notes
