"""A classifier's answers as rows of a table: classes, calibrated probabilities, and when it abstains."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int

from omma.core.files import omma_version
from omma.core.progress import Progress
from omma.core.protocols import Extras, Features, Images
from omma.core.words import count
from omma.data.sources import label_sets
from omma.features.extract import FeatureSet, prepare, stream
from omma.weights.classifier import Classifier
from omma.weights.model import Model

DIGITS = 6  # of a probability


def logits(
    model: Model,
    images: Images,
    device: torch.device,
    precision: torch.dtype,
    progress: Progress | None = None,
) -> FeatureSet:
    """Logits [n, k] of the model's classifier for all images that can be read, in `vectors`."""
    classifier = model.classifier
    assert classifier is not None, "the caller has made sure"

    def read(features: Features) -> torch.Tensor:
        return classifier.logits(features.pooled, features.prefix)

    network, bad = prepare(model.encoder, device, precision), list[tuple[str, str]]()
    rows = [np.zeros((0, len(classifier.classes)), np.float32)]
    indices, done = [np.zeros(0, np.int64)], 0
    for batch in stream(network, images, model.preprocess, of=read):
        bad += batch.bad
        if len(batch.indices):
            rows.append(batch.vectors)
            indices.append(batch.indices)
        done += len(batch.indices) + len(batch.bad)
        if progress:
            progress(done, len(images))
    return FeatureSet(np.concatenate(rows), np.concatenate(indices), tuple(bad))


def schema(classifier: Classifier, top: int, labelled: bool, origin: bytes) -> pa.Schema:
    """The columns: path, label if images have any, then

    - one label an image: class, probability, runner_up, runner_up_probability, abstain, and for more than two
      answers class_3, probability_3, ...
    - several: classes and their probabilities, as lists.
    """
    fields = [pa.field("path", pa.string(), nullable=False)]
    if labelled:
        fields.append(pa.field("label", pa.list_(pa.string()) if classifier.multi_label else pa.string()))
    if classifier.multi_label:
        fields += [
            pa.field("classes", pa.list_(pa.string())),
            pa.field("probabilities", pa.list_(pa.float64())),
        ]
    else:
        for name, probability in _names(top):
            fields += [pa.field(name, pa.string()), pa.field(probability, pa.float64())]
        fields.insert(len(fields) - 2 * (top - 2), pa.field("abstain", pa.bool_()))
    return pa.schema(fields, metadata={"omma": origin})


def columns(
    classifier: Classifier,
    probabilities: Float[np.ndarray, "n k"],
    top: int,
    threshold: float | None,
) -> dict[str, Any]:
    """The columns of some images, but path and label; threshold: below it is no answer, None: not known."""
    p = probabilities.astype(np.float64)
    if classifier.multi_label:
        rows = chosen(classifier, p, threshold)
        return {
            "classes": [[classifier.classes[c] for c in row] for row in rows],
            "probabilities": [[round(float(p[i, c]), DIGITS) for c in row] for i, row in enumerate(rows)],
        }
    order = np.argsort(-p, axis=1, kind="stable")[:, :top]
    found: dict[str, Any] = {}
    for place, (name, probability) in enumerate(_names(top)):
        if place < order.shape[1]:
            own = order[:, place]
            found[name] = [classifier.classes[c] for c in own]
            found[probability] = np.take_along_axis(p, own[:, None], 1)[:, 0].round(DIGITS).tolist()
        else:
            found[name] = found[probability] = [None] * len(p)
    found["abstain"] = [None] * len(p) if threshold is None else (p.max(1) < threshold).tolist()
    return found


def chosen(
    classifier: Classifier, probabilities: Float[np.ndarray, "n k"], threshold: float | None
) -> list[Sequence[int]]:
    """With several labels an image: the classes of each that reach the threshold, likeliest first.

    threshold: of all classes; None: each class's own, as chosen on held-out images, else .5.
    """
    own = classifier.calibration.thresholds or 0.5
    reached = probabilities >= np.asarray(own if threshold is None else threshold)
    return [
        sorted(np.flatnonzero(row).tolist(), key=lambda c, p=p: -p[c])
        for row, p in zip(reached, probabilities)
    ]


def _names(top: int) -> list[tuple[str, str]]:
    first = [("class", "probability"), ("runner_up", "runner_up_probability")]
    return first + [(f"class_{n}", f"probability_{n}") for n in range(3, top + 1)]


def numbered(extras: Extras) -> list[str]:
    """A note where classes have no names."""
    return [] if extras.facts.get("classes") else ["the model's classes have no names: numbers, from 0"]


def origin(model: Model, threshold: float | None) -> bytes:
    """For the metadata of a .parquet: which model answered."""
    facts = {"digest": model.digest, "provenance": model.provenance, "threshold": threshold}
    return json.dumps({"schema": 1, "omma": omma_version(), **facts}).encode()


class Truth:
    """The labels of images, where they have any, beside a classifier's answers."""

    def __init__(self, images: Images, classifier: Classifier) -> None:
        self.classes, self.classifier = images.classes, classifier
        self.sets, self.labels = label_sets.of(images), images.labels

    @property
    def any(self) -> bool:
        """Is any image labelled?"""
        return self.labels is not None or self.sets is not None

    def names(self, indices: Int[np.ndarray, "n"]) -> list[Any]:
        """For the column `label`: the class, or a list of classes; None where there is none."""
        if self.sets is not None:
            rows = [None if (row < 0).all() else np.flatnonzero(row > 0) for row in self.sets[indices]]
            found = [None if row is None else [self.classes[c] for c in row] for row in rows]
            return found if self.classifier.multi_label else [row and ";".join(row) for row in found]
        assert self.labels is not None
        found = [self.classes[c] if c >= 0 else None for c in self.labels[indices]]
        return [name and [name] for name in found] if self.classifier.multi_label else found

    def correct(self, indices: Int[np.ndarray, "n"], answers: Mapping[str, Any]) -> Bool[np.ndarray, "m"]:
        """Of the labelled ones of these images: is the answer the label, or the same set of labels?"""
        if not self.any or self.classifier.multi_label != (self.sets is not None):
            return np.zeros(0, bool)
        found = answers["classes" if self.classifier.multi_label else "class"]
        truth = self.names(indices)
        if self.classifier.multi_label:
            return np.array([set(a) == set(t) for a, t in zip(found, truth) if t is not None], bool)
        return np.array([a == t for a, t in zip(found, truth) if t is not None], bool)

    def notes(self) -> Iterator[str]:
        """Classes of the images that the classifier does not have."""
        if self.any and (unknown := [name for name in self.classes if name not in self.classifier.classes]):
            names = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            yield f"{count(len(unknown), 'class', 'classes')} of the images are unknown to the model: {names}"
