"""Does a model decide by shape or by texture? The cue-conflict test [Geirhos 2019, arXiv 1811.12231].

Pictures have the shape of one class and the texture of another. Of the decisions for either, the share for
the shape is 96 % for people and 20 to 45 % for networks trained on ImageNet.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.core.protocols import Images
from omma.core.words import count, enumerated
from omma.data.sources import label_sets
from omma.data.sources.labels import remedy
from omma.evaluation import confidence, knn, linear, zeroshot
from omma.evaluation.job import Job, features_of_all, readable_rows, vectors_of
from omma.evaluation.score import Subject
from omma.evaluation.split import Split
from omma.inspection import sixteen
from omma.inspection.cue_conflict import Conflicts, read
from omma.weights import Model, answers
from omma.weights.classifier import Classifier

Way = Literal["classifier", "knn", "linear", "zeroshot"]
WAYS: Mapping[Way, str] = {
    "classifier": "own classifier",
    "knn": f"{knn.HEADLINE}-NN on labelled photos",
    "linear": "linear on labelled photos",
    "zeroshot": "names of the classes",
}
SUBJECTS: Mapping[Subject, str] = {
    "trained": "this model",
    "untrained": "the same untrained",
    "pixels": "raw pixels",
}
# shares of shape decisions in the paper's own answers to 1,200 pictures
PUBLISHED = {"people": 0.9587, "AlexNet": 0.4294, "GoogLeNet": 0.3119, "VGG-16": 0.1722}
SOURCE = "Geirhos 2019, arXiv 1811.12231"


@dataclass(frozen=True)
class OfShape:
    """The decisions for the pictures of one shape."""

    name: str
    n: int
    shape: int
    texture: int


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What one subject answers in one way: how often the shape's class, the texture's, or another."""

    subject: Subject
    way: Way
    options: int  # classes to choose among
    n: int  # pictures
    shape: int
    texture: int
    interval95: tuple[float, float] | None  # of `share`: bootstrap over the pictures decided for either
    classes: tuple[OfShape, ...]

    @property
    def share(self) -> float | None:
        """shape / (shape + texture); None if neither was ever answered."""
        decided = self.shape + self.texture
        return self.shape / decided if decided else None

    @property
    def either(self) -> float:
        """The share of pictures decided for shape or texture; by chance 2 / options."""
        return (self.shape + self.texture) / self.n

    def to_json(self) -> dict[str, Any]:
        """Plain types only."""
        interval = None if self.interval95 is None else list(self.interval95)
        extra = {"share": self.share, "either": self.either, "chance_either": 2 / self.options}
        return asdict(self) | extra | {"interval95": interval, "classes": [asdict(c) for c in self.classes]}


@dataclass(frozen=True)
class ShapeTexture:
    """The decisions of a model and its floors; the first is the model's own."""

    model: str
    data: str
    decisions: tuple[Decisions, ...]
    notes: tuple[str, ...] = ()
    bad: tuple[tuple[str, str], ...] = ()  # (path, reason) of pictures that could not be read

    def to_json(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "schema": 1,
            "model": self.model,
            "data": self.data,
            "decisions": [each.to_json() for each in self.decisions],
            "published": {"source": SOURCE, "shape_share": dict(PUBLISHED)},
            "notes": list(self.notes),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows for print: the model, its floors, chance."""
        rows = [
            [SUBJECTS[d.subject], WAYS[d.way], _share_text(d), f"{d.either:.1%}", f"{d.n:,}"]
            for d in self.decisions
        ]
        for options in dict.fromkeys(d.options for d in self.decisions):
            rows.append(["chance", f"{options} classes", "50.0%", f"{2 / options:.1%}", ""])
        return ["", "decides by", "shape share (95 %)", "either", "pictures"], rows

    def classes_table(self) -> tuple[list[str], list[list[str]]]:
        """The first decisions, by the class of the shape."""
        rows = [
            [c.name, f"{c.shape:,}", f"{c.texture:,}", f"{c.n - c.shape - c.texture:,}", _of(c)]
            for c in self.decisions[0].classes
        ]
        return ["shape of", "shape", "texture", "neither", "shape share"], rows

    def verdict(self) -> str:
        """One sentence."""
        first = self.decisions[0]
        if first.share is None:
            return f"{self.model} answers neither shape nor texture for any picture"
        low, high = first.interval95 or (0.0, 1.0)
        by = "by shape" if low > 0.5 else "by texture" if high < 0.5 else "by neither cue clearly more often"
        return (
            f"{self.model} decides {by}: {first.share:.0%} of its decisions for either are for the shape "
            f"({low:.0%} to {high:.0%}); people {PUBLISHED['people']:.0%}, AlexNet "
            f"{PUBLISHED['AlexNet']:.0%} ({SOURCE})"
        )


def _share_text(decisions: Decisions) -> str:
    if decisions.share is None or decisions.interval95 is None:
        return "–"
    low, high = decisions.interval95
    return f"{decisions.share:.1%} ({low:.1%} to {high:.1%})"


def _of(of_shape: OfShape) -> str:
    decided = of_shape.shape + of_shape.texture
    return f"{of_shape.shape / decided:.0%}" if decided else "–"


def judge(job: Job, name: str, labelled: Images | None = None) -> ShapeTexture:
    """Decide the class of each picture in every way that the model allows.

    job: the model, and as its images the pictures (inspection/cue_conflict.py). labelled: photos of the same
    classes, for k-NN and a linear probe. The model's own classifier decides if it has ImageNet's classes or
    classes of the pictures' names; the job's text tower by those names.
    Raises ValueError for pictures or photos that do not fit, and where nothing can decide.
    """
    job = replace(job, model=whole(job.model))
    conflicts = read(job.images, job.source)
    notes: list[str] = []
    ways = list(_ways(job, conflicts, labelled, notes))
    if not ways:
        raise ValueError(
            f"{name} cannot decide among {', '.join(conflicts.classes[:3])}, ...: it has no classifier with "
            "ImageNet's 1,000 classes or these names, and no text tower; give photos of these classes "
            "(--labelled PHOTOS)"
        )
    features = features_of_all(job, conflicts.images, raw=labelled is not None)
    readable = readable_rows(features)
    conflicts = conflicts.subset(readable)
    found: list[Decisions] = []
    for way, options, decide in ways:
        rows = np.flatnonzero(
            np.isin(conflicts.shapes, _numbers(conflicts, options))
            & np.isin(conflicts.textures, _numbers(conflicts, options))
        )
        part = conflicts.subset(rows)
        if not len(part):
            raise ValueError(f"{job.source}: no readable picture whose two classes are known to {WAYS[way]}")
        if len(part) < len(conflicts):
            notes.append(
                f"{WAYS[way]}: {count(len(conflicts) - len(part), 'picture')} left out, of classes that it "
                "does not know"
            )
        for subject, feature_set in features.items():
            answered = decide(subject, vectors_of(feature_set, readable[rows]), part)
            if answered is not None:
                found.append(counted(part, answered, subject, way, len(options)))
    if conflicts.left_out:
        notes.append(f"{count(conflicts.left_out, 'picture')} without a conflict left out")
    if job.floors and labelled is None:
        notes.append("raw pixels are a floor only with labelled photos (--labelled PHOTOS)")
    order = list(SUBJECTS)
    found.sort(key=lambda each: order.index(each.subject))
    return ShapeTexture(name, job.source, tuple(found), tuple(notes), features["trained"].bad)


def whole(model: Model) -> Model:
    """The model seeing whole pictures, without a centre crop, as the paper's networks did."""
    preprocess = replace(model.preprocess, crop_share=1.0)
    return Model(model.encoder, preprocess, model.provenance, model.extras)


def counted(
    conflicts: Conflicts, answered: Int[np.ndarray, "n"], subject: Subject, way: Way, options: int
) -> Decisions:
    """Sort answers, numbers of `conflicts.classes` or -1 for another, into shape, texture and neither."""
    by_shape, by_texture = answered == conflicts.shapes, answered == conflicts.textures
    either = by_shape | by_texture
    return Decisions(
        subject=subject,
        way=way,
        options=options,
        n=len(answered),
        shape=int(by_shape.sum()),
        texture=int(by_texture.sum()),
        interval95=confidence.bootstrap(by_shape[either]) if either.any() else None,
        classes=tuple(
            OfShape(name, int(own.sum()), int((own & by_shape).sum()), int((own & by_texture).sum()))
            for number, name in enumerate(conflicts.classes)
            if (own := conflicts.shapes == number).any()
        ),
    )


# ---------------------------------------------------------------- ways to decide
# of a subject's vectors of these pictures: the classes' numbers, -1 for another; None: it has no answer
Decide = Callable[[Subject, Float[np.ndarray, "n d"], Conflicts], Int[np.ndarray, "n"] | None]


def _ways(
    job: Job, conflicts: Conflicts, labelled: Images | None, notes: list[str]
) -> Iterator[tuple[Way, tuple[str, ...], Decide]]:
    """Each with the names of the classes that it chooses among; what is to be known of it goes to `notes`."""
    classifier = job.model.classifier
    if classifier is not None:
        if (found := _groups(classifier, conflicts.classes)) is not None:
            numbers, how = found
            notes.append(how)
            yield "classifier", tuple(numbers), _by_classifier(job, classifier, numbers)
        else:
            notes.append("its classifier knows too few of the pictures' classes and does not decide")
    if labelled is not None:
        photos = _photos(job, conflicts, labelled, notes)
        options = tuple(conflicts.classes[k] for k in np.unique(photos[0]).tolist())
        yield "knn", options, _by_photos(photos, "knn", job)
        if np.bincount(photos[0]).max() > 1:
            yield "linear", options, _by_photos(photos, "linear", job)
    if job.text_reader is not None:
        yield "zeroshot", conflicts.classes, _by_names(job)
        notes += job.text_reader.notes(conflicts.classes)


def _numbers(conflicts: Conflicts, names: Sequence[str]) -> list[int]:
    return [conflicts.classes.index(name) for name in names if name in conflicts.classes]


def _groups(classifier: Classifier, classes: Sequence[str]) -> tuple[dict[str, list[int]], str] | None:
    """The classifier's classes that make up each option, and how they were found, in a sentence."""
    if classifier.multi_label:
        return None
    order = dict(zip(classes, classifier.order(classes)))
    if 2 * sum(number >= 0 for number in order.values()) > len(classes):
        own = {name: [number] for number, name in enumerate(classifier.classes)}
        return own, f"its classifier's {count(len(own), 'class', 'classes')} decide by name"
    found = sixteen.groups(classifier.classes)
    if found is None or sum(name in found[0] for name in classes) < 2:
        return None
    numbers, how = found
    fine = sum(map(len, numbers.values()))
    return numbers, (
        f"{fine:,} of its {len(classifier.classes):,} classes, {how}, make up {len(numbers)} categories; "
        "each has the average of their probabilities"
    )


def _by_classifier(job: Job, classifier: Classifier, numbers: Mapping[str, list[int]]) -> Decide:
    def decide(subject: Subject, vectors: np.ndarray, conflicts: Conflicts) -> np.ndarray | None:
        if subject == "pixels":
            return None
        if subject == "untrained":  # a head of its own, drawn as linear layers are
            with torch.random.fork_rng():
                torch.manual_seed(job.seed)
                layer = torch.nn.Linear(vectors.shape[1], len(classifier.classes))
            logits = torch.from_numpy(vectors) @ layer.weight.detach().T + layer.bias.detach()
            probabilities = logits.softmax(1).numpy()
        elif classifier.distilled is None:
            probabilities = classifier.probabilities(classifier.logits(torch.from_numpy(vectors))).numpy()
        else:  # the second head reads another token
            rows = answers.logits(job.model, conflicts.images, job.device, job.precision).vectors
            probabilities = classifier.probabilities(torch.from_numpy(rows)).numpy()
        chosen = sixteen.averaged(probabilities, numbers).argmax(1)
        index = {name: number for number, name in enumerate(conflicts.classes)}
        return np.array([index.get(name, -1) for name in numbers], np.int64)[chosen]

    return decide


Photos = tuple[Int[np.ndarray, "p"], Mapping[Subject, Float[np.ndarray, "p d"]]]


def _photos(job: Job, conflicts: Conflicts, labelled: Images, notes: list[str]) -> Photos:
    """Labels of the photos of the pictures' classes, in their numbers, and each subject's vectors of them."""
    source = str(getattr(labelled, "source", "the labelled photos"))
    if label_sets.of(labelled) is not None:
        raise ValueError(label_sets.refusal(source, labelled.classes, "the cue-conflict test"))
    if labelled.labels is None:
        raise ValueError(f"{source} has no labels: {remedy(labelled)}")
    keys = {zeroshot.key(name): number for number, name in enumerate(conflicts.classes)}
    mapped = np.array([keys.get(zeroshot.key(name), -1) for name in labelled.classes], np.int64)
    labels = np.where(labelled.labels >= 0, mapped[labelled.labels], -1)
    rows = np.flatnonzero(labels >= 0)
    if len(np.unique(labels[rows])) < 2:
        theirs, ours = (", ".join(names[:4]) for names in (labelled.classes, conflicts.classes))
        raise ValueError(
            f"{source} has photos of {theirs}, ...; the pictures are of {ours}, ...: at least two classes "
            "must have the same names"
        )
    features = features_of_all(job, labelled.subset(rows))
    readable = readable_rows(features)
    vectors: dict[Subject, np.ndarray] = {
        subject: vectors_of(own, readable) for subject, own in features.items()
    }
    labels = labels[rows[readable]]
    if others := len(labelled) - len(labels):
        notes.append(f"{count(others, 'labelled photo')} not used: of other classes, without a label, or bad")
    names = [conflicts.classes[k] for k in np.unique(labels).tolist()]
    notes.append(f"decided from {count(len(labels), 'labelled photo')} of {enumerated(names)}")
    return labels, vectors


def _by_photos(photos: Photos, way: Way, job: Job) -> Decide:
    labels, vectors = photos
    device = job.device if job.device.type == "cuda" else "cpu"  # other devices lack fp64

    def decide(subject: Subject, own: np.ndarray, conflicts: Conflicts) -> np.ndarray | None:
        data = Split(vectors[subject], labels, own, conflicts.shapes)
        if way == "knn":
            (answered,) = knn.predict_each(data, (knn.HEADLINE,), device=device).values()
            return answered
        return linear.predict(data, seed=job.seed, device=device).predictions

    return decide


def _by_names(job: Job) -> Decide:
    reader = job.text_reader
    assert reader is not None

    def decide(subject: Subject, own: np.ndarray, conflicts: Conflicts) -> np.ndarray | None:
        if subject == "pixels":  # they have no common space with texts
            return None
        return zeroshot.predict(reader.paired.images(own), reader.vectors(conflicts.classes, job.device))

    return decide
