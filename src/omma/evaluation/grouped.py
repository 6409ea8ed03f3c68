"""An evaluation of images that belong together: what probes and intervals may use, and what to know."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from omma.core.words import count
from omma.data.sources import group_split
from omma.data.sources import split as splitting
from omma.data.sources.groups import Groups
from omma.evaluation import leakage
from omma.evaluation.job import Job
from omma.evaluation.leakage import FEW, Leakage
from omma.evaluation.split import holdouts

CHOOSE = ("linear", "ridge")  # protocols that hold out a part of the train part


class Parts(NamedTuple):
    """The groups of both parts; None where nothing is done by group."""

    train: Int[np.ndarray, "n"] | None = None  # to hold out by
    test: Int[np.ndarray, "m"] | None = None  # to draw intervals by
    fields: Mapping[str, Any] = MappingProxyType({})  # of `Score`
    notes: tuple[str, ...] = ()


def parts(
    groups: Groups | None,
    is_test: Bool[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    protocols: Sequence[str],
    seed: int,
) -> Parts:
    """What can be done by group. groups, labels: of the images of both parts; labels: one an image."""
    if groups is None:
        return Parts()
    train, test = groups.codes[~is_test], groups.codes[is_test]
    tested, notes = len(np.unique(test)), list(_untested(groups, is_test, labels))
    holds_out: np.ndarray | None = train
    if any(protocol in CHOOSE for protocol in protocols):
        try:
            holdouts(labels[~is_test], seed, groups=train)
        except ValueError:
            holds_out = None
            notes.append(
                f"no class has train images in two groups by {groups.name}: what probes choose, they choose "
                "on held-out images of groups that they are fitted on"
            )
    if tested == 1:
        notes.append(
            f"the test part is one group by {groups.name}: intervals draw its images, and say nothing of "
            "another group"
        )
        return Parts(holds_out, None, notes=tuple(notes))
    if tested < FEW:
        notes.append(
            f"intervals draw the {tested} groups by {groups.name} of the test part, which are too few: true "
            "ones are wider"
        )
    return Parts(holds_out, test, fields(groups, test), tuple(notes))


def fields(groups: Groups | None, drawn: Int[np.ndarray, "m"] | None) -> dict[str, Any]:
    """The fields of `Score` that say which groups intervals draw; drawn: those of the test images."""
    if groups is None or drawn is None:
        return {}
    return {"group": groups.name, "test_groups": len(np.unique(drawn))}


def leaks(
    job: Job,
    groups: Groups | None,
    vectors: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    is_test: Bool[np.ndarray, "n"],
) -> Leakage | None:
    """What a split by image would read on these images of one label each."""
    if groups is None:
        return None
    own = splitting.split_name(job.images)
    device = job.device if job.device.type == "cuda" else "cpu"
    named = bool(getattr(job.images, "split_name", ""))
    return leakage.measure(vectors, labels, groups.codes, is_test, groups.name, own, named, job.seed, device)


def _untested(groups: Groups, is_test: Bool[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> Iterator[str]:
    """Classes without a test image, since they lie in one group."""
    rows = np.flatnonzero(labels >= 0)
    alone = np.setdiff1d(group_split.single(labels[rows], groups.codes[rows]), labels[is_test])
    if number := len(alone):
        have = count(number, "class has", "classes have")
        yield f"{have} no test image, since all images lie in one group by {groups.name}: label more groups"
