"""The evaluation of a model by the images that it finds near an image: of its category, and of its object."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from omma.core.protocols import Images
from omma.core.words import count
from omma.data.sources import split as splitting
from omma.data.sources.columns import texts
from omma.evaluation import confidence, grouped, image_retrieval
from omma.evaluation.job import Job, Judgement, conditions_of, features_of_all, readable_rows, vectors_of
from omma.evaluation.score import Score
from omma.evaluation.verdict import Comparison

INSTANCES = ("instance", "sequence", "object")  # columns that say which object or scene an image shows


def by_images(job: Job) -> Judgement:
    """Search each image of the test part among its others; without a test part, each image among all others.

    Raises ValueError if neither labels nor a column of instances tell which images belong together.
    """
    levels = dict(_levels(job.images))
    if not levels:
        raise ValueError(
            f"{job.source} has neither labels nor a column {' or '.join(INSTANCES)}, so nothing says which "
            "images belong together: give a table with one of them"
        )
    rows, split = np.arange(len(job.images)), "all images"
    if job.images.splits is not None and (job.images.splits == "test").any():
        rows = np.flatnonzero(job.images.splits == "test")
        split = f"{splitting.split_name(job.images)}: its test part"
    rows = rows[np.any([groups[rows] >= 0 for _, groups in levels.values()], axis=0)]
    features = features_of_all(job, job.images.subset(rows))
    readable = readable_rows(features)
    scores: list[Score] = []
    comparisons: list[Comparison] = []
    notes: list[str] = []
    for level, (called, groups) in levels.items():
        own = groups[rows[readable]]
        known = own >= 0
        codes = None if job.groups is None else job.groups.codes[rows[readable[known]]]
        apart = codes if level == "category" else None  # an instance may be the group itself
        hits: dict[str, np.ndarray] = {}
        for subject, feature_set in features.items():
            vectors = vectors_of(feature_set, readable[known]).astype(np.float32)
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            found = image_retrieval.ranked(vectors, own[known], apart)
            if not len(found.queries):
                break
            hits[subject] = found.first < 1
            within = None if codes is None else confidence.several(codes[found.queries])
            drawn = grouped.fields(job.groups, within)
            if job.progress:
                job.progress(f"{level} retrieval on {subject}", len(rows), len(rows))
            scores += [
                Score(
                    subject=subject,
                    protocol="image-retrieval",
                    metric=metric,
                    **figure._asdict(),
                    split=split,
                    seed=job.seed,
                    n_test=len(found.queries),
                    settings={"gallery": found.gallery, "chance": chance, "by": called},
                    **conditions_of(subject, feature_set, job.model.preprocess),
                    **drawn,
                )
                for metric, figure, chance in image_retrieval.figures(found, level, job.seed, within)
            ]
        if not hits:
            notes.append(
                f"{level}: no two images of the test part have the same {called}, so none is searched"
            )
            continue
        if alone := int(known.sum()) - len(hits["trained"]):
            notes.append(f"{level}: {count(alone, 'image')} without another of the same {called}: no queries")
        comparisons += _comparisons(hits, level, job.seed, within)
    if not scores:
        raise ValueError(f"{job.source}: {'; '.join(notes)}; give several images of each")
    return Judgement(scores, comparisons, notes, features["trained"].bad, rows[readable])


def _levels(images: Images) -> Iterator[tuple[str, tuple[str, Int[np.ndarray, "n"]]]]:
    """Each level with what its groups are called and each image's group; -1: not known."""
    if images.labels is not None:
        yield "category", ("label", images.labels)
    columns = getattr(images, "columns", None)
    name = next((each for each in INSTANCES if columns is not None and each in columns.column_names), None)
    if columns is not None and name is not None:
        values = np.array([value or "" for value in texts(columns, name).to_pylist()])
        groups = np.unique(values, return_inverse=True)[1]
        yield "instance", (name, np.where(values == "", -1, groups))


def _comparisons(
    hits: dict[str, np.ndarray], level: str, seed: int, groups: Int[np.ndarray, "q"] | None
) -> Iterator[Comparison]:
    for against, floor in hits.items():
        if against != "trained":
            difference = float(hits["trained"].mean() - floor.mean())
            interval = confidence.paired(hits["trained"], floor, seed, groups=groups)
            yield Comparison("image-retrieval", against, None, difference, interval, f"recall@1, {level}")
