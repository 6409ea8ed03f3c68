"""The evaluation of a model on images with several labels each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy import sparse

from omma.data.sources import label_sets
from omma.data.sources import split as splitting
from omma.evaluation import NAMES, confidence, grouped, knn, linear, metrics
from omma.evaluation.answers import classified
from omma.evaluation.detail import Detail
from omma.evaluation.job import Job, Judgement, conditions_of, features_of_all, readable_rows, vectors_of
from omma.evaluation.metrics import Metrics
from omma.evaluation.score import Score, Subject
from omma.evaluation.split import Answer
from omma.evaluation.verdict import MAP, Comparison

PROTOCOLS = ("knn", "linear", "classifier")


def by_label_sets(job: Job, protocols: Sequence[str]) -> Judgement:
    """Mean average precision of probes that learn from the train part, and of the model's classifier.

    Raises ValueError for protocols that need one label an image, and for a taxonomy.
    """
    images, seed = job.images, job.seed
    sets = label_sets.of(images)
    assert sets is not None
    if wrong := [p for p in protocols if p not in PROTOCOLS]:
        raise ValueError(label_sets.refusal(job.source, images.classes, f"the protocol {wrong[0]}"))
    if job.taxonomy is not None:
        raise ValueError(label_sets.refusal(job.source, images.classes, "a taxonomy"))
    train, test, description = splitting.train_test(images, seed, groups=job.groups)
    rows = np.sort(np.concatenate([train, test]))
    features = features_of_all(job, images.subset(rows))
    readable = readable_rows(features)
    chosen, is_test = rows[readable], np.isin(rows[readable], test)
    parts = sets[chosen[~is_test]].astype(np.int64), sets[chosen[is_test]].astype(np.int64)
    strata = label_sets.strata(parts[0])
    tested = images.subset(chosen[is_test])
    groups = None if job.groups is None else job.groups.of_rows(chosen)
    within = grouped.parts(groups, is_test, label_sets.strata(sets[chosen].astype(np.int64)), protocols, seed)
    facts: dict[str, Any] = {
        "n_train": len(parts[0]), "n_test": len(parts[1]), "classes": len(images.classes),
        "split": description, "seed": seed, **within.fields,
    }  # fmt: skip
    about: dict[str, Any] = {
        "labels": float((parts[1] > 0).sum(1).mean()),
        "chance": float(np.mean([(c > 0).sum() / (c >= 0).sum() for c in parts[1].T if (c > 0).any()])),
    }
    scores: list[Score] = []
    details: list[Detail] = []
    measured: dict[tuple[Subject, str], Metrics] = {}
    for subject, feature_set in features.items():
        vectors = vectors_of(feature_set, readable)
        conditions = conditions_of(subject, feature_set, job.model.preprocess)
        for protocol in protocols:
            if protocol == "classifier" and subject != "trained":
                continue
            if job.progress:
                job.progress(f"{NAMES[protocol]} on {subject}", len(readable), len(readable))
            pair = vectors[~is_test], vectors[is_test]
            answer, own, thresholds = _answer(protocol, pair, (parts[0], strata, within.train), job, tested)
            found = metrics.multi_label(answer.scores, parts[1], thresholds, seed, within.test)
            measured[subject, protocol] = found
            fields: dict[str, Any] = conditions | own | facts
            fields["settings"] = answer.settings | about
            scores += [
                Score(subject=subject, protocol=protocol, metric=name, **figure._asdict(), **fields)
                for name, figure in _asked(found, job.metrics)
            ]
            if subject == "trained":
                details.append(_detail(protocol, own.get("k"), images.classes, found))
    comparisons = list(_comparisons(measured))
    notes = list(within.notes)
    return Judgement(scores, comparisons, notes, features["trained"].bad, chosen[is_test], details)


def _answer(
    protocol: str,
    vectors: tuple[np.ndarray, np.ndarray],
    labels: tuple[Int[np.ndarray, "n k"], Int[np.ndarray, "n"], Int[np.ndarray, "n"] | None],
    job: Job,
    tested: Any,
) -> tuple[Answer, dict[str, Any], Any]:
    """Scores of the images' classes, the fields of `Score`, and from what score on a class is answered.

    labels: of the train part: its sets, strata and groups.
    """
    (train, test), (sets, strata, groups) = vectors, labels
    if protocol == "classifier":
        classifier, answered = classified(job, test, tested)
        number = classifier.order(job.images.classes)
        given = classifier.calibration.thresholds
        thresholds = 0.5 if given is None else np.array([given[k] if k >= 0 else 0.5 for k in number])
        scores = answered.answer.scores[:, : len(number)]
        return answered.answer._replace(scores=scores), {}, thresholds
    if protocol == "knn":
        k, scores = knn.shares_of_sets(train, sets, test)
        return Answer(scores.argmax(1), {}, scores), {"k": k, "T": knn.TEMPERATURE}, 0.5
    device = job.device if job.device.type == "cuda" else "cpu"  # as for `answers`
    return linear.predict_sets(train, sets, strata, test, job.seed, device, groups), {}, 0.5


def _asked(found: Metrics, groups: Sequence[str]) -> Iterator[tuple[str, metrics.Figure]]:
    """mAP, and the metrics of the groups."""
    if "map_macro" in found.overall:
        yield MAP, found.overall["map_macro"]
    for group in groups:
        for name in (*metrics.GROUPS[group], *(["exact_match"] if group == "accuracy" else [])):
            if name in found.overall and name != "map_macro":
                yield name, found.overall[name]


def _detail(protocol: str, k: int | None, names: Sequence[str], found: Metrics) -> Detail:
    """Without confusions: an image of several labels is not taken for one."""
    none = sparse.csr_array((len(names), len(names)), dtype=np.int64)
    return Detail(
        protocol=protocol,
        k=k,
        names=tuple(names),
        order=np.arange(len(names)),
        metrics=found,
        confusions=none,
        pairs=(),
        examples=(),
    )


def _comparisons(measured: Mapping[tuple[Subject, str], Metrics]) -> Iterator[Comparison]:
    """Differences of mAP, by the same draws of test images."""
    for (subject, protocol), floor in measured.items():
        ours = measured["trained", protocol]
        if subject != "trained" and "map_macro" in ours.draws:
            difference = ours.overall["map_macro"].value - floor.overall["map_macro"].value
            gains = ours.draws["map_macro"] - floor.draws["map_macro"]
            low, high = confidence.percentiles(gains, np.array(difference))
            yield Comparison(protocol, subject, None, difference, (float(low), float(high)), MAP)
