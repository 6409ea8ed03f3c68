"""Outliers and wrong labels as findings: what a model's features show."""

import numpy as np
from jaxtyping import Int

from omma.core.protocols import Images
from omma.curation import mislabelled, outliers
from omma.curation.findings import Finding
from omma.curation.mislabelled import Labels
from omma.curation.quality import Judged
from omma.curation.robust import FEW
from omma.data.sources import label_sets
from omma.features.extract import FeatureSet
from omma.ops.nearest import unit


def odd(features: FeatureSet, groups: Int[np.ndarray, "n"]) -> Judged:
    """Outliers; groups: a number for each image of the collection that it shares with its copies."""
    own = groups[features.indices]
    if len(np.unique(own)) < FEW:
        return Judged((), {}, (f"fewer than {FEW} different images: outliers are not looked for",))
    found = outliers.find(features.vectors, own)
    how = (
        f"mean cosine distance to the {outliers.NEIGHBOURS} nearest images above {found.limit:.3f}: "
        f"{outliers.CUT} robust deviations of its logarithm above the median"
    )
    findings = [
        Finding(
            int(features.indices[k]), "outlier", float(found.deviations[k]),
            f"mean distance {found.distance[k]:.3f} where {np.median(found.distance):.3f} is usual",
        )
        for k in np.flatnonzero(found.flagged)
    ]  # fmt: skip
    return Judged(tuple(findings), {"outlier": how})


def wrong_labels(images: Images, features: FeatureSet, groups: Int[np.ndarray, "n"], seed: int) -> Judged:
    """Wrong labels; nothing without labels of two classes."""
    own, sets = groups[features.indices], label_sets.of(images)
    if sets is not None:
        found = mislabelled.find_sets(features.vectors, sets[features.indices], own, seed)
        findings = _of_sets(images, features, found)
    else:
        labels = np.full(len(images), -1) if images.labels is None else images.labels
        labels = labels[features.indices]
        if len(np.unique(labels[labels >= 0])) < 2:
            return Judged((), {}, ("no labels of two classes: wrong labels are not looked for",))
        found = mislabelled.find(features.vectors, labels, own, seed)
        findings = _of_labels(images, features, labels, own, found)
    how = (
        f"confident learning on out-of-fold probabilities ({mislabelled.FOLDS} folds, copies on one side): "
        "as many labels as it counts as wrong, the least probable first"
    )
    return Judged(tuple(findings), {"mislabelled": how}, found.notes)


def _of_labels(
    images: Images, features: FeatureSet, labels: np.ndarray, groups: np.ndarray, found: Labels
) -> list[Finding]:
    """Each wrong label with the most similar image, other than its copies, of the label that is suggested."""
    findings, vectors = list[Finding](), unit(features.vectors)
    doubted = np.zeros(len(labels), bool)
    doubted[found.rows[found.flagged]] = True
    for k in np.flatnonzero(found.flagged).tolist():
        at, suggested = int(found.rows[k]), int(found.suggested[k])
        others = np.flatnonzero((labels == suggested) & (groups != groups[at]))
        sure = others[~doubted[others]]
        others = sure if len(sure) else others
        like = int(features.indices[others[(vectors[others] @ vectors[at]).argmax()]]) if len(others) else -1
        names = images.classes[found.classes[k]], images.classes[suggested]
        findings.append(_finding(images, int(features.indices[at]), *names, k, found, like))
    return findings


def _of_sets(images: Images, features: FeatureSet, found: Labels) -> list[Finding]:
    findings = []
    for k in np.flatnonzero(found.flagged).tolist():
        name = images.classes[found.classes[k]]
        names = (f"not {name}", name) if found.suggested[k] else (name, f"not {name}")
        findings.append(_finding(images, int(features.indices[found.rows[k]]), *names, k, found))
    return findings


def _finding(
    images: Images, row: int, given: str, suggested: str, k: int, found: Labels, like: int = -1
) -> Finding:
    by = "of its neighbours' votes" if found.by_neighbours[k] else "by a probe that has not seen it"
    confidence, probability = float(found.confidence[k]), float(found.probability[k])
    return Finding(
        row, "mislabelled", 1 - confidence,
        f"given {given}: {confidence:.3f}, suggested {suggested}: {probability:.3f}, {by}",
        related=images.path(like) if like >= 0 else "", related_row=like,
        given=given, suggested=suggested, probability=probability,
    )  # fmt: skip
