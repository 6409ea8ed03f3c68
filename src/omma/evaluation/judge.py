"""The evaluation of a model on labelled images, the same for every subject."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from omma.core.words import count
from omma.data.sources import label_sets
from omma.data.sources import split as splitting
from omma.data.sources.labels import remedy
from omma.evaluation import confidence, knn, linear, ridge, zeroshot
from omma.evaluation.job import Job, Judgement, conditions_of, features_of_all, readable_rows, vectors_of
from omma.evaluation.score import Score, Subject, classification_fields
from omma.evaluation.split import Split
from omma.evaluation.verdict import NAMES, Comparison

ScoreKey = tuple[Subject, str, int | None]  # subject, protocol, k


def by_labels(job: Job, protocols: Sequence[str]) -> Judgement:
    """Classify the test part by probes that learn from the train part, or by the names of the classes."""
    images, seed = job.images, job.seed
    if label_sets.of(images) is not None:
        raise ValueError(label_sets.refusal(job.source, images.classes, "an evaluation by labels"))
    if images.labels is None:
        raise ValueError(f"{job.source} has no labels: {remedy(images)}")
    train, test, description = splitting.train_test(images, seed)
    rows = np.sort(np.concatenate([train, test]))
    rows = rows[images.labels[rows] >= 0]
    features = features_of_all(job, images.subset(rows))
    readable = readable_rows(features)
    labels, is_test = images.labels[rows[readable]], np.isin(rows[readable], test)
    scores: list[Score] = []
    correct: dict[ScoreKey, np.ndarray] = {}  # one entry a test image
    for subject, feature_set in features.items():
        vectors = vectors_of(feature_set, readable)
        data = Split(vectors[~is_test], labels[~is_test], vectors[is_test], labels[is_test])
        conditions = conditions_of(subject, feature_set, job.model.preprocess)
        for protocol in protocols:
            if protocol == "zeroshot" and subject == "pixels":
                continue  # pixels have no common space with texts
            if job.progress:
                job.progress(f"{NAMES[protocol]} on {subject}", len(readable), len(readable))
            for predictions, fields in _predictions(protocol, data, job):
                scores += [
                    Score(
                        subject=subject,
                        protocol=protocol,
                        split=description,
                        seed=seed,
                        **conditions,
                        **fields,
                        **measured,
                    )
                    for measured in classification_fields(
                        predictions, data.test_labels, data.train_labels, seed
                    )
                ]
                correct[subject, protocol, fields.get("k")] = predictions == data.test_labels
    notes = list(_untrained_classes(images.classes, labels[~is_test], labels[is_test], protocols))
    if unused := len(images) - len(rows):
        notes.append(f"left out, without a label or in neither part: {count(unused, 'image')}")
    if "zeroshot" in protocols:
        notes += _zeroshot_notes(job, images.classes)
    tested = rows[readable][is_test]
    return Judgement(scores, list(_comparisons(correct, seed)), notes, features["trained"].bad, tested)


def _untrained_classes(
    classes: Sequence[str],
    train: Int[np.ndarray, "n"],
    test: Int[np.ndarray, "m"],
    protocols: Sequence[str],
) -> Iterator[str]:
    """What to know of classes that only the test part has; train, test: the labels of both."""
    only = np.setdiff1d(test, train)
    if len(only) and set(protocols) != {"zeroshot"}:
        names = ", ".join(str(classes[k]) if classes else str(k) for k in only[:5].tolist())
        have = "classes have" if len(only) > 1 else "class has"
        yield (
            f"{len(only):,} {have} no train image ({names}): probes get all of the "
            f"{int(np.isin(test, only).sum()):,} test images of it wrong"
        )


# ---------------------------------------------------------------- steps
def _predictions(
    protocol: str, data: Split, job: Job
) -> Iterator[tuple[Int[np.ndarray, "m"], dict[str, Any]]]:
    """Predictions of the test part, with the fields of `Score` that depend on the protocol."""
    device = job.device if job.device.type == "cuda" else "cpu"  # other devices lack fp64
    reader, classes = job.text_reader, job.images.classes
    if protocol == "knn":
        for k, predictions in knn.predict_each(data, device=device).items():
            yield predictions, {"k": k, "T": knn.TEMPERATURE}
    elif protocol == "zeroshot":
        assert reader is not None
        vectors = reader.vectors(classes, job.device)
        predictions = zeroshot.predict(reader.paired.images(data.test), vectors)
        yield predictions, {"settings": reader.settings(classes)}
    else:
        predict = {"linear": linear.predict, "ridge": ridge.predict}[protocol]
        answer = predict(data, seed=job.seed, device=device)
        yield answer.predictions, {"settings": answer.settings}


def _comparisons(correct: Mapping[ScoreKey, Bool[np.ndarray, "m"]], seed: int) -> Iterator[Comparison]:
    for (subject, protocol, k), floor in correct.items():
        if subject != "trained":
            ours = correct["trained", protocol, k]
            difference = float(ours.mean() - floor.mean())
            yield Comparison(protocol, subject, k, difference, confidence.paired(ours, floor, seed))


def _zeroshot_notes(job: Job, classes: Sequence[str]) -> Iterator[str]:
    assert job.text_reader is not None
    yield from job.text_reader.notes(classes)
    for same in zeroshot.alike(classes)[:3]:
        names = " and ".join(map(repr, same))
        yield f"the classes {names} have the same prompts: images are assigned to the first"
    if all(name.strip().isdigit() for name in classes):
        yield "the names of the classes are numbers, which describe nothing: name the classes (docs/clip.md)"
