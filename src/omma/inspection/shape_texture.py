"""Does a model decide by shape or by texture? The cue-conflict test [Geirhos 2019, arXiv 1811.12231].

Pictures have the shape of one class and the texture of another. Of the decisions for either, the share for
the shape is 96 % for people and 20 to 45 % for networks trained on ImageNet.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from omma.core import notebook
from omma.core.protocols import Images
from omma.core.words import count
from omma.evaluation import confidence
from omma.evaluation.job import Job, features_of_all, readable_rows, vectors_of
from omma.evaluation.score import Subject
from omma.inspection.cue_conflict import Conflicts, read
from omma.inspection.ways_to_decide import WAYS, Way, numbers_of, ways_of
from omma.weights import Model

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

    def __repr__(self) -> str:
        return notebook.brief("ShapeTexture", f"{self.model} on {self.data}: {self.verdict()}")

    def _repr_html_(self) -> str:
        """The table of `omma explain --shape-texture`, for a notebook."""
        sentence = " ".join((self.verdict(), *self.notes))
        return notebook.table(*self.table(), f"{self.model} on {self.data}", sentence)

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
    ways = list(ways_of(job, conflicts, labelled, notes))
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
            np.isin(conflicts.shapes, numbers_of(conflicts, options))
            & np.isin(conflicts.textures, numbers_of(conflicts, options))
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
