"""One evaluation: its conditions, and the features of the images by each subject."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.backbones.layers import prompts as learned_prompts
from omma.backbones.layers import text
from omma.core.caches import features_folder
from omma.core.progress import StageProgress
from omma.core.protocols import Images, Preprocess
from omma.data import text_tokenizer
from omma.data.batches.preprocess import shorter_side
from omma.data.sources.groups import Groups
from omma.data.sources.taxonomy import Taxonomy
from omma.data.sources.trained_on import TrainedOn
from omma.evaluation import zeroshot
from omma.evaluation.detail import Detail
from omma.evaluation.hierarchy import Tree
from omma.evaluation.leakage import Leakage
from omma.evaluation.regression import Target
from omma.evaluation.score import Score, Subject
from omma.evaluation.verdict import Comparison
from omma.evaluation.zeroshot import TextReader
from omma.features.extract import FeatureSet, extract, pixels
from omma.weights import Model


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
    metrics: tuple[str, ...] = ()  # groups of metrics beside top-1 (metrics.GROUPS)
    taxonomy: Taxonomy | None = None
    groups: Groups | None = None  # images that belong together, of which splits and intervals take whole ones
    target: Target | None = None  # numbers that are regressed, in place of labels
    trees: dict[tuple[str, ...], Tree] = field(default_factory=dict)  # those that `tree` has made

    def tree(self, names: tuple[str, ...]) -> Tree:
        """The taxonomy of classes of these names."""
        assert self.taxonomy is not None
        if names not in self.trees:
            self.trees[names] = Tree.of(self.taxonomy, names)
        return self.trees[names]


class Judgement(NamedTuple):
    """The results of an evaluation."""

    scores: list[Score]
    comparisons: list[Comparison]
    notes: list[str]
    bad: tuple[tuple[str, str], ...]  # (path, reason) of images that could not be read
    tested: Int[np.ndarray, "m"]  # rows of the test images
    details: Sequence[Detail] = ()
    leakage: Leakage | None = None  # of a split by image, where images belong together


def text_reader(
    model: Model,
    name: str,
    prompts: str | Path | None = None,
    merges: str | Path | None = None,
    descriptions: str | Path | None = None,
) -> TextReader:
    """The model's text tower with its tokenizer, and what it reads of classes; ValueError if it has none."""
    templates = () if prompts is None else zeroshot.read_templates(prompts)
    sentences = None if descriptions is None else zeroshot.by_words(zeroshot.read_descriptions(descriptions))
    paired = text.restored(model.extras, name, None if merges is None else text_tokenizer.read_merges(merges))
    if paired.tokenizer is None:
        raise ValueError(
            f"{name} does not hold its tokenizer's merges: give --merges bpe_simple_vocab_16e6.txt.gz "
            "(docs/clip.md)"
        )
    return TextReader(paired, templates, sentences, learned_prompts.restored(model.extras, name))


def features_of_all(job: Job, images: Images, raw: bool = True) -> dict[Subject, FeatureSet]:
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


def readable_rows(features: Mapping[Subject, FeatureSet]) -> Int[np.ndarray, "n"]:
    """Indices of the images that every subject has features of."""
    readable = features["trained"].indices
    for feature_set in features.values():
        readable = np.intersect1d(readable, feature_set.indices)
    return readable


def vectors_of(features: FeatureSet, indices: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n d"]:
    """The vectors of these images, all of which must be readable."""
    return features.vectors[np.searchsorted(features.indices, indices)]


def conditions_of(subject: Subject, features: FeatureSet, preprocess: Preprocess) -> dict[str, Any]:
    """The fields of `Score` that say how vectors were computed."""
    crop = f"shorter side {shorter_side(preprocess)}, centre {preprocess.size} x {preprocess.size} px"
    if subject == "pixels":
        side = features.provenance["pixels"]["size"]
        shape = f"{side} x {side} x {preprocess.channels}"
        return {"layer": "input", "pooling": "flattened", "crop": f"the same, at {shape} px"}
    precision = {"float32": "fp32", "bfloat16": "bf16"}.get(name := features.provenance["precision"], name)
    return {"layer": "last", "pooling": features.provenance["pooling"], "crop": crop, "precision": precision}


def features_cache(model: str | Path | Model, cache: str | Path | None) -> Path | None:
    """The folder for computed features: "auto" is `features` beside the weights, or in the user's caches."""
    if cache != "auto":
        return None if cache is None else Path(cache)
    return None if isinstance(model, Model) else features_folder(model)
