"""The answers of each protocol for the test part, with scores of all classes where it has them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from omma.core.protocols import Images
from omma.core.words import count
from omma.evaluation import knn, linear, ridge, zeroshot
from omma.evaluation.job import Job
from omma.evaluation.split import Answer, Split
from omma.weights import Model
from omma.weights import answers as answering
from omma.weights.classifier import Classifier


class Answered(NamedTuple):
    """The answer of a protocol."""

    answer: Answer  # scores: a column a name; without rows if the protocol has none for this k
    names: tuple[str, ...]  # of the classes: those of the images, then others that it knows
    fields: dict[str, Any]  # of `Score`, that depend on the protocol


def answers(protocol: str, data: Split, job: Job, test: Images) -> Iterator[Answered]:
    """One answer, or several of k-NN. test: the images that `data.test` are features of."""
    device = job.device if job.device.type == "cuda" else "cpu"  # other devices lack fp64
    names = tuple(job.images.classes)
    if protocol == "classifier":
        yield classified(job, data.test, test)[1]
    elif protocol == "knn":
        for k, answer in knn.answers(data, device=device).items():
            yield Answered(_widened(answer, len(names)), names, {"k": k, "T": knn.TEMPERATURE})
    else:
        if protocol == "zeroshot":
            answer = _zeroshot(job, data.test)
        else:
            predict = {"linear": linear.predict, "ridge": ridge.predict}[protocol]
            answer = predict(data, seed=job.seed, device=device)
        yield Answered(_widened(answer, len(names)), names, {"settings": answer.settings})


def _widened(answer: Answer, classes: int) -> Answer:
    """With scores of classes that no labelled image has: the least."""
    rows, have = answer.scores.shape
    if have >= classes:
        return answer
    least = 0.0 if answer.probabilities else float(answer.scores.min(initial=0.0))
    more = np.full((rows, classes - have), least, np.float32)
    return answer._replace(scores=np.concatenate([answer.scores, more], 1))


def _zeroshot(job: Job, test: Float[np.ndarray, "m d"]) -> Answer:
    """Probabilities by the scale of the logits, if the model has one for a softmax."""
    reader, classes = job.text_reader, job.images.classes
    assert reader is not None
    vectors = reader.vectors(classes, job.device)
    images = reader.paired.images(test)
    settings = reader.settings(classes)
    tensors = job.model.extras.tensors
    softmax = "logit_scale" in tensors and "logit_bias" not in tensors
    scores = images @ vectors.T
    if softmax:
        scale = float(tensors["logit_scale"].float().exp())
        scores = torch.from_numpy(scale * scores).softmax(1).numpy()
    return Answer(zeroshot.predict(images, vectors), settings, scores, softmax)


# ---------------------------------------------------------------- the model's own classifier
def default_protocols(model: Model, classes: Sequence[str]) -> tuple[str, ...]:
    """Those that are used where none is named."""
    return (*(["classifier"] if knows(model, classes) else []), "knn", "linear")


def knows(model: Model, classes: Sequence[str]) -> bool:
    """Does the model hold a classifier that names at least half of these classes?

    Numbers that stand in for names do not count: two data sets may number other classes alike.
    """
    if not model.extras.facts.get("classes") or (classifier := Classifier.of(model)) is None:
        return False
    return 2 * sum(number >= 0 for number in classifier.order(classes)) >= len(classes) > 0


def checked_classifier(model: Model, classes: Sequence[str], source: str) -> Classifier:
    """The model's classifier; ValueError if it has none, or one that knows none of the classes by name."""
    classifier = Classifier.of(model)
    if classifier is None:
        raise ValueError("the model holds no classifier: `omma finetune` gives it one; or choose knn, linear")
    if max(classifier.order(classes), default=-1) < 0:
        theirs, ours = (", ".join(map(repr, names[:3])) for names in (classifier.classes, classes))
        raise ValueError(
            f"the classifier knows none of the classes of {source} by name: it has {theirs}, ...; "
            f"the images {ours}, ...; rename either"
        )
    return classifier


def unseen_notes(model: Model, classes: Sequence[str], labels: np.ndarray) -> Iterator[str]:
    """What to know of test images of classes that the classifier does not know; labels: of the test part."""
    classifier = Classifier.of(model)
    assert classifier is not None
    unknown = np.flatnonzero(np.array(classifier.order(classes)) < 0)
    if tested := [k for k in unknown.tolist() if (labels == k).any()]:
        names = ", ".join(classes[k] for k in tested[:5])
        images = int(np.isin(labels, tested).sum())
        yield (
            f"the classifier does not know {count(len(tested), 'class', 'classes')} of the test part "
            f"({names}): it gets all of the {count(images, 'image')} wrong"
        )


def classified(job: Job, vectors: Float[np.ndarray, "m d"], test: Images) -> tuple[Classifier, Answered]:
    """Calibrated probabilities of the classes of the images, then of others that the classifier knows."""
    classes = job.images.classes
    classifier = checked_classifier(job.model, classes, job.source)
    if classifier.distilled is None:
        logits = classifier.logits(torch.from_numpy(vectors))
    else:  # the second head reads another token
        logits = torch.from_numpy(answering.logits(job.model, test, job.device, job.precision).vectors)
    probabilities = classifier.probabilities(logits).numpy()
    order = classifier.order(classes)
    others = [k for k in range(len(classifier.classes)) if k not in set(order)]
    numbers = np.array([*order, *others])  # of the columns; -1: it does not know the class
    scores = np.where(numbers >= 0, probabilities[:, numbers], 0.0).astype(np.float32)
    column = np.argsort(numbers)[(numbers < 0).sum() :]
    predictions = column[probabilities.argmax(1)]  # where two are equal, that which `omma predict` answers
    settings = {"temperature": classifier.calibration.temperature, "classes": len(classifier.classes)}
    answer = Answer(predictions, settings, scores, not classifier.multi_label)
    names = (*classes, *(classifier.classes[k] for k in others))
    return classifier, Answered(answer, names, {"settings": settings})
