"""The evaluation of a model on numbers beside images (age, dose, angle), the same for every subject."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from omma.core.protocols import Field, Images
from omma.core.words import count
from omma.data.sources import fields
from omma.data.sources import split as splitting
from omma.data.sources.groups import Groups
from omma.data.sources.indexed import IndexedImages
from omma.evaluation import NAMES, confidence, grouped, regression
from omma.evaluation.job import Job, Judgement, conditions_of, features_of_all, readable_rows, vectors_of
from omma.evaluation.regression import Answer, Data, Measured, Target
from omma.evaluation.score import Score, Subject
from omma.evaluation.verdict import Comparison

SHARE = 0.2  # of the images that are tested
PROBES = {"ridge": regression.ridge_answer, "knn": regression.knn_answer}


def checked(
    protocols: Sequence[str],
    target: str | None,
    period: float | None,
    metrics: Sequence[str] = (),
    taxonomy: object = None,
) -> tuple[tuple[str, ...], Target]:
    """The protocols (by default both) and the target; ValueError for what needs labels, or a wrong period."""
    if target is None:
        raise ValueError("--target-period is the period of --target: give that too")
    if wrong := [name for name in protocols if name not in regression.PROTOCOLS]:
        known = ", ".join(regression.PROTOCOLS)
        raise ValueError(f"protocol {wrong[0]!r} is for labels: with --target choose among {known}")
    if metrics or taxonomy is not None:
        raise ValueError("metrics and taxonomies are for labels: leave them out with --target")
    return tuple(protocols) or regression.PROTOCOLS, Target(target, period)


def by_targets(job: Job, target: Target, protocols: Sequence[str]) -> Judgement:
    """Regress the target by ridge and k-NN on features of the model, of it untrained, and on raw pixels.

    Images without a finite number are left out. Raises ValueError for a column that is not one of numbers.
    """
    numbers = values_of(job.images, target.name)
    train, test, description = parts(job.images, numbers, job.seed, job.groups)
    rows = np.sort(np.concatenate([train, test]))
    features = features_of_all(job, job.images.subset(rows))
    readable = readable_rows(features)
    chosen = rows[readable]
    is_test = np.isin(chosen, test)
    y = numbers[chosen]
    by_group = None if job.groups is None else job.groups.of_rows(chosen)
    codes = (None, None) if by_group is None else (by_group.codes[~is_test], by_group.codes[is_test])
    within = grouped.parts(by_group, is_test, np.zeros(len(y), np.int64), (), job.seed)
    mean = target.constant(y[~is_test])
    scores: list[Score] = []
    measured: dict[tuple[Subject, str], Measured] = {}
    for subject, feature_set in features.items():
        vectors = vectors_of(feature_set, readable)
        data = Data(vectors[~is_test], y[~is_test], vectors[is_test], y[is_test], *codes)
        constant = regression.measure(data, np.full(len(data.test_y), mean), target, job.seed)
        conditions = conditions_of(subject, feature_set, job.model.preprocess)
        for protocol in protocols:
            if job.progress:
                job.progress(f"{NAMES[protocol]} on {subject}", len(readable), len(readable))
            answer = PROBES[protocol](data, target, job.seed, _device(job))
            found = regression.measure(data, answer.predictions, target, job.seed)
            measured[subject, protocol] = found
            common = {
                "subject": subject, "protocol": protocol, "split": description, "seed": job.seed,
                "n_train": len(data.train_y), "n_test": len(data.test_y), **conditions,
                **within.fields,
            }  # fmt: skip
            scores += _scores(common, answer, found, constant, target)
    notes = [*_notes(numbers, len(rows)), *within.notes]
    comparisons = list(_comparisons(measured, target))
    return Judgement(scores, comparisons, notes, features["trained"].bad, chosen[is_test])


def _device(job: Job) -> str:
    return "cuda" if job.device.type == "cuda" else "cpu"  # others lack fp64


def values_of(images: Images, name: str) -> Float[np.ndarray, "n"]:
    """The number of each image, fp64, NaN where it has none. Raises ValueError for a column of others."""
    if not isinstance(images, IndexedImages):
        raise ValueError(f"--target {name}: only a collection that `open_images` opened has columns")
    read = fields.read(images, Field(name=name, missing="nan"))
    assert read is not None
    if read.shape[1] != 1:
        raise ValueError(
            f"--target {name}: {images.source} has {read.shape[1]} numbers an image there; name the column "
            f"of one, such as {name}0"
        )
    return read[:, 0].astype(np.float64)


def parts(
    images: Images, y: Float[np.ndarray, "n"], seed: int, groups: Groups | None
) -> tuple[Int[np.ndarray, "a"], Int[np.ndarray, "b"], str]:
    """Rows to train and to test on, and a description.

    The collection's own split where both parts have numbers (unless the user asks for groups that it
    divides); else SHARE of the images, or whole groups, of each fifth of the numbers. Raises ValueError.
    """
    source = str(getattr(images, "source", "")) or "images"
    known = np.flatnonzero(np.isfinite(y))
    if len(known) < 4:
        raise ValueError(
            f"{source}: {count(len(known), 'image')} with a number; a regression needs four or more"
        )
    if images.splits is not None:
        train, test = (known[images.splits[known] == side] for side in ("train", "test"))
        divided = groups is not None and groups.asked and len(groups.on_both_sides(train, test))
        if len(train) > 1 and len(test) > 1 and (not divided or getattr(images, "split_name", "")):
            return train, test, f"{splitting.split_name(images)}: {len(train):,} train, {len(test):,} test"
    codes = None if groups is None else groups.codes[known]
    for strata in (regression.strata(y[known]), np.zeros(len(known), np.int64)):
        train, test = splitting.stratified(strata, SHARE, seed, codes)
        if len(test) > 1 and len(train) > 1:
            break
    else:
        raise ValueError(
            f"{source}: no split leaves two images on either side"
            + (f" with whole groups by {groups.name}; use --group none" if groups is not None else "")
        )
    by = "image" if groups is None else groups.name
    share = len(test) / len(known)
    description = f"split by {by}, {share:.0%} test, seed {seed}: {len(train):,} train, {len(test):,} test"
    return known[train], known[test], description


def _scores(
    common: Mapping[str, Any], answer: Answer, found: Measured, constant: Measured, target: Target
) -> Iterator[Score]:
    """R2 and MAE; their settings say what a constant scores."""
    for metric, figure, floor in (
        (target.metric, found.fit, constant.fit.value), ("mae", found.mae, constant.mae.value)
    ):  # fmt: skip
        settings = {**answer.settings, "target": target.name, "constant": floor}
        if target.period is not None:
            settings["period"] = target.period
        yield Score(metric=metric, **figure._asdict(), settings=settings, **common)


def _comparisons(measured: Mapping[tuple[Subject, str], Measured], target: Target) -> Iterator[Comparison]:
    """Differences of R2, by the same draws of test images."""
    for (subject, protocol), floor in measured.items():
        ours = measured["trained", protocol]
        if subject != "trained":
            difference = ours.fit.value - floor.fit.value
            low, high = confidence.percentiles(ours.draws - floor.draws)
            yield Comparison(protocol, subject, None, difference, (float(low), float(high)), target.metric)


def _notes(numbers: Float[np.ndarray, "n"], used: int) -> Iterator[str]:
    if missing := int((~np.isfinite(numbers)).sum()):
        yield f"left out, without a finite number: {count(missing, 'image')}"
    if unused := len(numbers) - missing - used:
        yield f"left out, in neither part: {count(unused, 'image')}"
