"""The evaluation of a model on labelled images, the same for every subject."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from omma.core.words import count
from omma.data.sources import split as splitting
from omma.data.sources.labels import remedy
from omma.evaluation import NAMES, confidence, grouped, hierarchy, metrics, zeroshot
from omma.evaluation.answers import Answered, answers, unseen_notes
from omma.evaluation.detail import Detail, detail
from omma.evaluation.job import Job, Judgement, conditions_of, features_of_all, readable_rows, vectors_of
from omma.evaluation.metrics import Metrics
from omma.evaluation.score import Score, Subject, classification_fields
from omma.evaluation.split import Split
from omma.evaluation.verdict import Comparison

ScoreKey = tuple[Subject, str, int | None]  # subject, protocol, k
WITHOUT: dict[str, tuple[Subject, ...]] = {  # subjects that a protocol has no answers of
    "zeroshot": ("pixels",),  # they have no common space with texts
    "classifier": ("pixels", "untrained"),
}


def _one_label_each(job: Job) -> Int[np.ndarray, "n"]:
    """The images' labels; ValueError where there are none, or several an image."""
    images = job.images
    if images.labels is None:
        raise ValueError(f"{job.source} has no labels: {remedy(images)}")
    return images.labels


def by_labels(job: Job, protocols: Sequence[str]) -> Judgement:
    """Classify the test part by probes that learn from the train part, or by the names of the classes."""
    images, seed = job.images, job.seed
    own = _one_label_each(job)
    train, test, description = splitting.train_test(images, seed, groups=job.groups)
    rows = np.sort(np.concatenate([train, test]))
    rows = rows[own[rows] >= 0]
    features = features_of_all(job, images.subset(rows))
    readable = readable_rows(features)
    labels, is_test = own[rows[readable]], np.isin(rows[readable], test)
    tested = rows[readable][is_test]
    groups = None if job.groups is None else job.groups.of_rows(rows[readable])
    within = grouped.parts(groups, is_test, labels, protocols, seed)
    scores: list[Score] = []
    details: list[Detail] = []
    correct: dict[ScoreKey, np.ndarray] = {}  # one entry a test image
    for subject, feature_set in features.items():
        vectors = vectors_of(feature_set, readable)
        by_side = vectors[~is_test], labels[~is_test], vectors[is_test], labels[is_test]
        data = Split(*by_side, within.train, within.test)
        conditions = conditions_of(subject, feature_set, job.model.preprocess)
        for protocol in protocols:
            if subject in WITHOUT.get(protocol, ()):
                continue
            if job.progress:
                job.progress(f"{NAMES[protocol]} on {subject}", len(readable), len(readable))
            for answered in answers(protocol, data, job, images.subset(tested)):
                predictions, k = answered.answer.predictions, answered.fields.get("k")
                measured = classification_fields(
                    predictions, data.test_labels, data.train_labels, seed, within.test
                )
                if len(answered.answer.scores):
                    found, more = _further(answered, data, job)
                    measured += [each for each in more if each["metric"] not in _names(measured)]
                    if subject == "trained":
                        details.append(_detail(protocol, answered, data, job, tested, found))
                common = conditions | answered.fields | {"split": description, "seed": seed}
                common |= within.fields
                scores += [Score(subject=subject, protocol=protocol, **common, **each) for each in measured]
                correct[subject, protocol, k] = predictions == data.test_labels
    leak = grouped.leaks(job, groups, vectors_of(features["trained"], readable), labels, is_test)
    notes = [leak.sentence()] if leak is not None else []
    notes += [
        *within.notes,
        *_notes(job, labels[~is_test], labels[is_test], protocols, len(images) - len(rows)),
    ]
    comparisons = list(_comparisons(correct, seed, within.test))
    return Judgement(scores, comparisons, notes, features["trained"].bad, tested, details, leak)


def _notes(
    job: Job, train: Int[np.ndarray, "n"], test: Int[np.ndarray, "m"], protocols: Sequence[str], unused: int
) -> Iterator[str]:
    """What to know of the figures; train, test: the labels of both parts; unused: images in neither."""
    yield from _untrained_classes(job.images.classes, train, test, protocols)
    if unused:
        yield f"left out, without a label or in neither part: {count(unused, 'image')}"
    if "zeroshot" in protocols:
        yield from _zeroshot_notes(job, job.images.classes)
    if "classifier" in protocols:
        yield from unseen_notes(job.model, job.images.classes, test)


def _untrained_classes(
    classes: Sequence[str],
    train: Int[np.ndarray, "n"],
    test: Int[np.ndarray, "m"],
    protocols: Sequence[str],
) -> Iterator[str]:
    """What to know of classes that only the test part has; train, test: the labels of both."""
    only = np.setdiff1d(test, train)
    if len(only) and not set(protocols) <= {"zeroshot", "classifier"}:
        names = ", ".join(str(classes[k]) if classes else str(k) for k in only[:5].tolist())
        have = "classes have" if len(only) > 1 else "class has"
        yield (
            f"{len(only):,} {have} no train image ({names}): probes get all of the "
            f"{int(np.isin(test, only).sum()):,} test images of it wrong"
        )


# ---------------------------------------------------------------- steps
def _further(answered: Answered, data: Split, job: Job) -> tuple[Metrics, list[dict[str, Any]]]:
    """All metrics, and the fields of the Scores of those that were asked for."""
    answer, labels, classes = answered.answer, data.test_labels, len(answered.names)
    found = metrics.single_label(
        answer.predictions,
        labels,
        classes,
        answer.scores,
        answer.probabilities,
        "ap" in job.metrics,
        job.seed,
        data.test_groups,
    )
    groups = [name for group in job.metrics for name in metrics.GROUPS[group]]
    figures = {name: found.overall[name] for name in groups if name in found.overall}
    if job.taxonomy is not None:
        tree, scores = job.tree(answered.names), (answer.scores, answer.probabilities)
        figures |= hierarchy.measures(tree, answer.predictions, labels, *scores, job.seed, data.test_groups)
    counts = {"n_train": len(data.train_labels), "n_test": len(labels), "classes": classes}
    return found, [{"metric": name, **each._asdict(), **counts} for name, each in figures.items()]


def _names(measured: Sequence[Mapping[str, Any]]) -> set[str]:
    return {each.get("metric", "top1") for each in measured}


def _detail(
    protocol: str, answered: Answered, data: Split, job: Job, tested: Int[np.ndarray, "m"], found: Metrics
) -> Detail:
    order = None if job.taxonomy is None else job.tree(answered.names).order

    def path(i: int) -> str:
        return job.images.path(int(tested[i]))

    return detail(
        protocol,
        answered.fields.get("k"),
        answered.answer,
        data.test_labels,
        answered.names,
        order,
        found,
        path,
    )


def _comparisons(
    correct: Mapping[ScoreKey, Bool[np.ndarray, "m"]], seed: int, groups: Int[np.ndarray, "m"] | None
) -> Iterator[Comparison]:
    for (subject, protocol, k), floor in correct.items():
        if subject != "trained":
            ours = correct["trained", protocol, k]
            difference = float(ours.mean() - floor.mean())
            interval = confidence.paired(ours, floor, seed, groups=groups)
            yield Comparison(protocol, subject, k, difference, interval)


def _zeroshot_notes(job: Job, classes: Sequence[str]) -> Iterator[str]:
    assert job.text_reader is not None
    yield from job.text_reader.notes(classes)
    for same in zeroshot.alike(classes)[:3]:
        names = " and ".join(map(repr, same))
        yield f"the classes {names} have the same prompts: images are assigned to the first"
    if all(name.strip().isdigit() for name in classes):
        yield "the names of the classes are numbers, which describe nothing: name the classes (docs/clip.md)"
