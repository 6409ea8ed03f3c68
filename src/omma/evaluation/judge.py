"""The evaluation of a model on one set of images, by labels or captions, the same for every subject."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int

from omma.backbones.layers import prompts as learned_prompts
from omma.backbones.layers import text
from omma.core.protocols import Images, Preprocess, Tokenizer
from omma.core.words import count
from omma.data import text_tokenizer
from omma.data.batches.preprocess import shorter_side
from omma.data.sources import captions
from omma.data.sources import split as splitting
from omma.data.sources.labels import remedy
from omma.data.sources.trained_on import TrainedOn
from omma.evaluation import confidence, knn, linear, retrieval, ridge, zeroshot
from omma.evaluation.score import Score, Subject, classification_fields
from omma.evaluation.split import Split
from omma.evaluation.verdict import NAMES, Comparison
from omma.evaluation.zeroshot import TextReader
from omma.features.extract import FeatureSet, extract, pixels
from omma.weights import Model

ScoreKey = tuple[Subject, str, int | None]  # subject, protocol, k
StageProgress = Callable[[str, int, int], None]  # the current stage, images done, images in total


@dataclass(frozen=True, kw_only=True)
class Job:
    """One evaluation: model, images and conditions."""

    model: Model
    images: Images
    source: str
    device: torch.device
    precision: torch.dtype
    cache: Path | None
    seed: int
    floors: bool
    progress: StageProgress | None
    text_reader: TextReader | None  # for protocols that read texts
    trained_on: TrainedOn | None = None  # the images of the run that the model is from, where known


class Judgement(NamedTuple):
    """The results of an evaluation."""

    scores: list[Score]
    comparisons: list[Comparison]
    notes: list[str]
    bad: tuple[tuple[str, str], ...]  # (path, reason) of images that could not be read
    tested: Int[np.ndarray, "m"]  # rows of the test images


def text_reader(
    model: Model,
    name: str,
    prompts: str | Path | None = None,
    merges: str | Path | None = None,
    descriptions: str | Path | None = None,
) -> TextReader:
    """The model's text tower with its tokenizer, and what it reads of classes; ValueError if it has none."""
    templates = () if prompts is None else zeroshot.read_templates(prompts)
    sentences = None if descriptions is None else zeroshot.read_descriptions(descriptions)
    paired = text.restored(model.extras, name, None if merges is None else text_tokenizer.read_merges(merges))
    if paired.tokenizer is None:
        raise ValueError(
            f"{name} does not hold its tokenizer's merges: give --merges bpe_simple_vocab_16e6.txt.gz "
            "(docs/clip.md)"
        )
    return TextReader(paired, templates, sentences, learned_prompts.restored(model.extras, name))


def by_labels(job: Job, protocols: Sequence[str]) -> Judgement:
    """Classify the test part by probes that learn from the train part, or by the names of the classes."""
    images, seed = job.images, job.seed
    if images.labels is None:
        raise ValueError(f"{job.source} has no labels: {remedy(images)}")
    train, test, description = splitting.train_test(images, seed)
    rows = np.sort(np.concatenate([train, test]))
    rows = rows[images.labels[rows] >= 0]
    features = _features(job, images.subset(rows))
    readable = _readable(features)
    labels, is_test = images.labels[rows[readable]], np.isin(rows[readable], test)
    scores: list[Score] = []
    correct: dict[ScoreKey, np.ndarray] = {}  # one entry a test image
    for subject, feature_set in features.items():
        vectors = _rows(feature_set, readable)
        data = Split(vectors[~is_test], labels[~is_test], vectors[is_test], labels[is_test])
        conditions = _conditions(subject, feature_set, job.model.preprocess)
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


def by_captions(job: Job) -> Judgement:
    """Retrieve captions by images and images by captions, in the test part or, without one, in all images."""
    images, reader = job.images, job.text_reader
    assert reader is not None
    rows, usable, split, notes = _captioned(job)
    features = _features(job, images.subset(rows), raw=False)
    readable = _readable(features)
    drawn = captions.Captions(usable.take(pa.array(readable)), cast(Tokenizer, reader.paired.tokenizer))
    owner = np.repeat(np.arange(len(readable)), drawn.counts)
    if job.progress:
        job.progress("captions", len(readable), len(readable))
    texts = reader.paired.texts(drawn.values.to_pylist(), job.device)

    scores: list[Score] = []
    recalls: dict[tuple[Subject, str], retrieval.Recall] = {}
    for subject, feature_set in features.items():
        vectors = reader.paired.images(_rows(feature_set, readable))
        conditions = _conditions(subject, feature_set, job.model.preprocess)
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
    notes += drawn.cut()
    return Judgement(scores, comparisons, notes, features["trained"].bad, rows[readable])


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
def _features(job: Job, images: Images, raw: bool = True) -> dict[Subject, FeatureSet]:
    """Features of the same images by each subject; raw: include pixels."""

    def image_progress(stage: str) -> Callable[[int, int], None] | None:
        return partial(job.progress, stage) if job.progress else None

    def features_of(subject: Model, stage: str) -> FeatureSet:
        return extract(
            subject.encoder,
            images,
            subject.preprocess,
            job.device,
            job.precision,
            cache=job.cache,
            model_digest=subject.digest,
            progress=image_progress(stage),
        )

    features: dict[Subject, FeatureSet] = {"trained": features_of(job.model, "features, trained")}
    if job.floors:
        features["untrained"] = features_of(job.model.untrained(job.seed), "features, untrained")
    if job.floors and raw:
        features["pixels"] = pixels(images, job.model.preprocess, progress=image_progress("pixels"))
    return features


def _readable(features: Mapping[Subject, FeatureSet]) -> Int[np.ndarray, "n"]:
    """Indices of the images that every subject has features of."""
    readable = features["trained"].indices
    for feature_set in features.values():
        readable = np.intersect1d(readable, feature_set.indices)
    return readable


def _rows(features: FeatureSet, indices: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n d"]:
    """The vectors of these images, all of which must be readable."""
    return features.vectors[np.searchsorted(features.indices, indices)]


def _captioned(job: Job) -> tuple[Int[np.ndarray, "n"], pa.ListArray, str, list[str]]:
    """Rows of the images that have captions, their captions, the name of the split, and notes."""
    images = job.images
    text = getattr(images, "text", None)
    if text is None:
        raise ValueError(
            f"{job.source} has no captions: give a manifest with the columns path and caption (docs/input.md)"
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
    return rows, usable, split, fit.notes()


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


def _conditions(subject: Subject, features: FeatureSet, preprocess: Preprocess) -> dict[str, Any]:
    """The fields of `Score` that say how vectors were computed."""
    crop = f"shorter side {shorter_side(preprocess)}, centre {preprocess.size} x {preprocess.size} px"
    if subject == "pixels":
        side = features.provenance["pixels"]["size"]
        shape = f"{side} x {side} x {preprocess.channels}"
        return {"layer": "input", "pooling": "flattened", "crop": f"the same, at {shape} px"}
    precision = {"float32": "fp32", "bfloat16": "bf16"}.get(name := features.provenance["precision"], name)
    return {"layer": "last", "pooling": features.provenance["pooling"], "crop": crop, "precision": precision}


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
