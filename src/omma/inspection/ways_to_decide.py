"""How a model decides which category a picture is of: its classifier, labelled photos, names of classes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.core.protocols import Images
from omma.core.words import count, enumerated
from omma.data.sources import label_sets
from omma.data.sources.labels import remedy
from omma.evaluation import knn, linear, zeroshot
from omma.evaluation.job import Job, features_of_all, readable_rows, vectors_of
from omma.evaluation.score import Subject
from omma.evaluation.split import Split
from omma.inspection import sixteen
from omma.inspection.cue_conflict import Conflicts
from omma.weights import answers
from omma.weights.classifier import Classifier

Way = Literal["classifier", "knn", "linear", "zeroshot"]
WAYS: Mapping[Way, str] = {
    "classifier": "own classifier",
    "knn": f"{knn.HEADLINE}-NN on labelled photos",
    "linear": "linear on labelled photos",
    "zeroshot": "names of the classes",
}
# of a subject's vectors of these pictures: the classes' numbers, -1 for another; None: it has no answer
Decide = Callable[[Subject, Float[np.ndarray, "n d"], Conflicts], Int[np.ndarray, "n"] | None]


def ways_of(
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


def numbers_of(conflicts: Conflicts, names: Sequence[str]) -> list[int]:
    """The numbers of these classes among the pictures' own."""
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
