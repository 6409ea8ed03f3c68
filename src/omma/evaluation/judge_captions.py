"""The evaluation of a model on images and their captions: retrieval in both directions."""

from typing import cast

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from omma.core.protocols import Images, Tokenizer
from omma.core.words import count
from omma.data.sources import captions, composed
from omma.data.sources import split as splitting
from omma.data.sources.indexed import IndexedImages
from omma.evaluation import confidence, retrieval
from omma.evaluation.job import Job, Judgement, conditions_of, features_of_all, readable_rows, vectors_of
from omma.evaluation.score import Score, Subject
from omma.evaluation.verdict import Comparison


def by_captions(job: Job) -> Judgement:
    """Retrieve captions by images and images by captions, in the test part or, without one, in all images."""
    images, reader = job.images, job.text_reader
    assert reader is not None
    rows, usable, split, notes = _captioned(job)
    features = features_of_all(job, images.subset(rows), raw=False)
    readable = readable_rows(features)
    drawn = captions.Captions(usable.take(pa.array(readable)), cast(Tokenizer, reader.paired.tokenizer))
    owner = np.repeat(np.arange(len(readable)), drawn.counts)
    if job.progress:
        job.progress("captions", len(readable), len(readable))
    texts = reader.paired.texts(drawn.values.to_pylist(), job.device)

    scores: list[Score] = []
    recalls: dict[tuple[Subject, str], retrieval.Recall] = {}
    for subject, feature_set in features.items():
        vectors = reader.paired.images(vectors_of(feature_set, readable))
        conditions = conditions_of(subject, feature_set, job.model.preprocess)
        for recall in retrieval.recalls(retrieval.ranks(vectors, texts, owner)):
            recalls[subject, recall.metric] = recall
            scores.append(
                Score(
                    subject=subject,
                    protocol="retrieval",
                    metric=recall.metric,
                    value=recall.value,
                    interval95=confidence.clustered(recall.hits, recall.queries, job.seed),
                    split=split,
                    seed=job.seed,
                    n_test=int(recall.queries.sum()),
                    settings={"images": len(readable), "captions": len(texts), "chance": recall.chance},
                    **conditions,
                )
            )
    comparisons = []
    for (subject, metric), floor in recalls.items():
        if subject != "trained":
            gain = recalls["trained", metric].hits - floor.hits
            difference = recalls["trained", metric].value - floor.value
            interval = confidence.ratio(gain, floor.queries, job.seed)
            comparisons.append(Comparison("retrieval", subject, None, difference, interval, metric))
    notes += drawn.notes()
    return Judgement(scores, comparisons, notes, features["trained"].bad, rows[readable])


def _captioned(job: Job) -> tuple[Int[np.ndarray, "n"], pa.ListArray, str, list[str]]:
    """Rows of the images that have captions, their captions, the name of the split, and notes."""
    images, how = _as_trained(job)
    text = getattr(images, "text", None)
    if text is None:
        raise ValueError(
            f"{job.source} has no captions: give a manifest with the columns path and caption{how} "
            "(docs/input.md)"
        )
    split, rows = "all images", np.arange(len(images))
    if images.splits is not None and (images.splits == "test").any():
        split, rows = (
            f"{splitting.split_name(images)}: its test part",
            np.flatnonzero(images.splits == "test"),
        )
    fit, usable = captions.fit(text.take(pa.array(rows)))
    rows, usable = rows[fit.has], usable.filter(pa.array(fit.has))
    if len(rows) < 2:
        raise ValueError(
            f"{job.source}: {count(len(rows), 'image')} with a caption; retrieval needs at least two"
        )
    return rows, usable, split, [how] * (images is not job.images) + fit.notes()


def _as_trained(job: Job) -> tuple[Images, str]:
    """The images with captions composed as the model's were, where they have the columns for it.

    And a note on that, or else what columns would be needed.
    """
    recipe = job.model.provenance.get("settings")
    config = recipe.get("config") if isinstance(recipe, dict) else None
    text = config.get("caption") if isinstance(config, dict) else None
    if not isinstance(text, str):
        return job.images, ""
    columns = [phrase.column for phrase in composed.template(text, "the model's captions").phrases]
    if isinstance(job.images, IndexedImages) and composed.has_columns(job.images, columns):
        images = composed.compose(job.images, text, "the model's captions")
        return images, images.notes[-1]
    return job.images, f", or with {' and '.join(columns)}, of which the model's captions were composed"
