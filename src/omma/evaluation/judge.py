"""A model judged on one set of images: by their labels, or by their captions, every subject alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int

from omma.backbones.layers import text
from omma.backbones.layers.text import Paired
from omma.core.protocols import Images, Preprocess, Tokenizer
from omma.data import text_tokenizer
from omma.data.batches.preprocess import shorter_side
from omma.data.sources import captions
from omma.data.sources import split as splitting
from omma.evaluation import confidence, knn, linear, retrieval, ridge, zeroshot
from omma.evaluation.result import Result, Subject, scores
from omma.evaluation.split import Split
from omma.evaluation.verdict import NAMES, Comparison
from omma.features.extract import FeatureSet, extract, pixels
from omma.weights import Model

Answered = tuple[Subject, str, int | None]  # subject, protocol, k
Progress = Callable[[str, int, int], None]  # what is being done, images done, images in all


class Setting(NamedTuple):
    """What the two parts are and how they are judged: the same for every subject."""

    labels: Int[np.ndarray, "n"]
    is_test: Bool[np.ndarray, "n"]
    split: str
    seed: int
    device: torch.device


class Words(NamedTuple):
    """How a model reads texts, and the prompts that classes are given in."""

    paired: Paired
    templates: Sequence[str]  # one at least


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked of every set of images."""

    model: Model
    images: Images
    source: str
    device: torch.device
    precision: torch.dtype
    cache: Path | None
    seed: int
    floors: bool
    progress: Progress | None
    words: Words | None  # for the protocols that read texts


class Found(NamedTuple):
    """What came of it."""

    results: list[Result]
    comparisons: list[Comparison]
    notes: list[str]
    bad: tuple[tuple[str, str], ...]  # (path, reason) of images that could not be read


def words(model: Model, name: str, prompts: str | Path | None, merges: str | Path | None) -> Words:
    """The model's text tower with its tokenizer; ValueError where it has none."""
    templates = (zeroshot.TEMPLATE,) if prompts is None else zeroshot.read_templates(prompts)
    paired = text.restored(model.extras, name, None if merges is None else text_tokenizer.read_merges(merges))
    if paired.tokenizer is None:
        raise ValueError(
            f"{name} does not hold its tokenizer's merges: give --merges bpe_simple_vocab_16e6.txt.gz "
            "(docs/clip.md)"
        )
    return Words(paired, templates)


def by_labels(job: Job, protocols: Sequence[str]) -> Found:
    """Classes of the test part, by probes that learn from the train part or by the classes' names."""
    images, seed = job.images, job.seed
    if images.labels is None:
        raise ValueError(
            f"{job.source} has no labels: give class folders, or a manifest with the columns path and label"
        )
    train, test, description = splitting.train_test(images, seed)
    rows = np.sort(np.concatenate([train, test]))
    rows = rows[images.labels[rows] >= 0]
    features = _features(job, images.subset(rows))
    kept = _read_by_all(features)
    setting = Setting(images.labels[rows[kept]], np.isin(rows[kept], test), description, seed, job.device)

    results: list[Result] = []
    correct: dict[Answered, np.ndarray] = {}  # right or wrong, an entry a test image
    for subject, found in features.items():
        data = _split(found, kept, setting)
        about = _about(subject, found, job.model.preprocess)
        for protocol in protocols:
            if protocol == "zeroshot" and subject == "pixels":
                continue  # they are in no space that texts are in
            if job.progress:
                job.progress(f"{NAMES[protocol]} on {subject}", len(kept), len(kept))
            for predictions, said in _answers(protocol, data, setting, job.words, images.classes):
                results.append(
                    Result(
                        subject=subject,
                        protocol=protocol,
                        split=setting.split,
                        seed=seed,
                        **about,
                        **said,
                        **scores(predictions, data.test_labels, data.train_labels, seed),
                    )
                )
                correct[subject, protocol, said.get("k")] = predictions == data.test_labels
    notes = []
    if unused := len(images) - len(rows):
        notes.append(f"{unused:,} images without a label, or in neither part, were left out")
    if "zeroshot" in protocols:
        notes += _zeroshot_notes(job, images.classes)
    return Found(results, list(_comparisons(correct, seed)), notes, features["trained"].bad)


def by_captions(job: Job) -> Found:
    """Captions of images and images of captions, among those of the test part, or of all where none is."""
    images, seed, words = job.images, job.seed, job.words
    assert words is not None
    text = getattr(images, "text", None)
    if text is None:
        raise ValueError(
            f"{job.source} has no captions: give a manifest with the columns path and caption (docs/input.md)"
        )
    split, rows = "all images", np.arange(len(images))
    if images.splits is not None and (images.splits == "test").any():
        split, rows = "the collection's own split: its test part", np.flatnonzero(images.splits == "test")
    fit, usable = captions.fit(text.take(pa.array(rows)))
    rows, usable = rows[fit.has], usable.filter(pa.array(fit.has))
    if len(rows) < 2:
        raise ValueError(f"{job.source}: {len(rows)} images with captions; retrieval needs two at least")
    features = _features(job, images.subset(rows), raw=False)
    kept = _read_by_all(features)
    usable = usable.take(pa.array(kept))
    drawn = captions.Captions(usable, cast(Tokenizer, words.paired.tokenizer))
    owner = np.repeat(np.arange(len(kept)), drawn.counts)
    if job.progress:
        job.progress("captions", len(kept), len(kept))
    texts = words.paired.texts(drawn.values.to_pylist(), job.device)

    results, found = [], dict[tuple[Subject, str], retrieval.Recall]()
    for subject, features_ in features.items():
        vectors = words.paired.images(features_.vectors[np.searchsorted(features_.indices, kept)])
        about = _about(subject, features_, job.model.preprocess)
        for recall in retrieval.recalls(retrieval.ranks(vectors, texts, owner)):
            found[subject, recall.metric] = recall
            results.append(
                Result(
                    subject=subject,
                    protocol="retrieval",
                    metric=recall.metric,
                    value=recall.value,
                    interval95=confidence.clustered(recall.hits, recall.queries, seed),
                    split=split,
                    seed=seed,
                    n_test=int(recall.queries.sum()),
                    settings={"images": len(kept), "captions": len(texts), "chance": recall.chance},
                    **about,
                )
            )
    comparisons = [
        Comparison(
            protocol="retrieval",
            against=subject,
            k=None,
            metric=metric,
            difference=found["trained", metric].value - floor.value,
            interval95=confidence.paired_clustered(
                found["trained", metric].hits, floor.hits, floor.queries, seed
            ),
        )
        for (subject, metric), floor in found.items()
        if subject != "trained"
    ]
    return Found(results, comparisons, [*fit.notes(), *drawn.cut()], features["trained"].bad)


# ---------------------------------------------------------------- steps
def _features(job: Job, images: Images, raw: bool = True) -> dict[Subject, FeatureSet]:
    """Features of the same images by each subject; raw: of pixels too."""

    def counted(said: str) -> Callable[[int, int], None] | None:
        return partial(job.progress, said) if job.progress else None

    def of(subject: Model, said: str) -> FeatureSet:
        return extract(
            subject.encoder,
            images,
            subject.preprocess,
            job.device,
            job.precision,
            cache=job.cache,
            model_digest=subject.digest,
            progress=counted(said),
        )

    found: dict[Subject, FeatureSet] = {"trained": of(job.model, "features, trained")}
    if job.floors:
        found["untrained"] = of(job.model.untrained(job.seed), "features, untrained")
    if job.floors and raw:
        found["pixels"] = pixels(images, job.model.preprocess, progress=counted("pixels"))
    return found


def _read_by_all(features: Mapping[Subject, FeatureSet]) -> Int[np.ndarray, "n"]:
    """The images that every subject has features of."""
    kept = features["trained"].indices
    for found in features.values():
        kept = np.intersect1d(kept, found.indices)
    return kept


def _split(features: FeatureSet, kept: Int[np.ndarray, "n"], setting: Setting) -> Split:
    vectors = features.vectors[np.searchsorted(features.indices, kept)]
    test = setting.is_test
    return Split(vectors[~test], setting.labels[~test], vectors[test], setting.labels[test])


def _answers(
    protocol: str, data: Split, setting: Setting, words: Words | None, classes: Sequence[str]
) -> Iterator[tuple[Int[np.ndarray, "m"], dict[str, Any]]]:
    """Predictions of the test part, with the fields of Result that the protocol knows."""
    device = setting.device if setting.device.type == "cuda" else "cpu"  # fp64 is missing elsewhere
    if protocol == "knn":
        for k, predictions in knn.predict_each(data, device=device).items():
            yield predictions, {"k": k, "T": knn.TEMPERATURE}
    elif protocol == "zeroshot":
        assert words is not None
        embedded = words.paired.texts(zeroshot.prompts(classes, words.templates), setting.device)
        vectors = zeroshot.classifier(embedded, len(classes))
        said = {"templates": len(words.templates), "template": words.templates[0]}
        yield zeroshot.predict(words.paired.images(data.test), vectors), {"settings": said}
    else:
        predict = {"linear": linear.predict, "ridge": ridge.predict}[protocol]
        answer = predict(data, seed=setting.seed, device=device)
        yield answer.predictions, {"settings": answer.settings}


def _about(subject: Subject, features: FeatureSet, preprocess: Preprocess) -> dict[str, Any]:
    """The fields of Result that say how a vector was made."""
    crop = f"shorter side {shorter_side(preprocess)}, centre {preprocess.size} x {preprocess.size} px"
    if subject == "pixels":
        side = features.provenance["pixels"]["size"]
        shape = f"{side} x {side} x {preprocess.channels}"
        return {"layer": "input", "pooling": "flattened", "crop": f"the same, at {shape} px"}
    precision = {"float32": "fp32", "bfloat16": "bf16"}.get(name := features.provenance["precision"], name)
    return {"layer": "last", "pooling": features.provenance["pooling"], "crop": crop, "precision": precision}


def _comparisons(correct: Mapping[Answered, Bool[np.ndarray, "m"]], seed: int) -> Iterator[Comparison]:
    for (subject, protocol, k), floor in correct.items():
        if subject == "trained":
            continue
        ours = correct["trained", protocol, k]
        yield Comparison(
            protocol=protocol,
            against=subject,
            k=k,
            difference=float(ours.mean() - floor.mean()),
            interval95=confidence.paired(ours, floor, seed),
        )


def _zeroshot_notes(job: Job, classes: Sequence[str]) -> Iterator[str]:
    assert job.words is not None
    templates = job.words.templates
    more = f" and {len(templates) - 1} more templates" if len(templates) > 1 else ""
    yield f"zero-shot: {len(classes):,} classes by their names, as {templates[0]!r}{more}"
    if all(name.strip().isdigit() for name in classes):
        yield "the classes' names are numbers, which say nothing of what is seen: name them (docs/clip.md)"
