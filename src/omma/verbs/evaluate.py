"""`omma evaluate`: what the features of a model are worth on labelled images, beside two floors."""

import json as json_
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int

from omma import device as devices
from omma import weights
from omma.data import index
from omma.data import split as splitting
from omma.data.cache import cache_folder
from omma.data.preprocess import shorter_side
from omma.evaluation import interval, knn, linear, ridge
from omma.evaluation.arrays import Split
from omma.evaluation.evaluation import NAMES, Comparison, Evaluation
from omma.evaluation.result import Result, Subject, scores
from omma.features import FeatureSet, extract, pixels
from omma.protocols import Images, Preprocess
from omma.run import EVALUATION, RunFolder
from omma.weights import Model

PROTOCOLS = ("knn", "linear", "ridge")
Answered = tuple[Subject, str, int | None]  # subject, protocol, k
Progress = Callable[[str, int, int], None]  # what is being done, images done, images in all


class Setting(NamedTuple):
    """What the two parts are and how they are judged: the same for every subject."""

    labels: Int[np.ndarray, "n"]
    is_test: Bool[np.ndarray, "n"]
    split: str
    seed: int
    device: torch.device


def evaluate(
    model: str | Path | Model,
    labelled: str | Path | Images,
    *,
    protocols: Sequence[str] = ("knn", "linear"),
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    floors: bool = True,
    allow_partial: bool = False,
    json: str | Path | None = None,
    cache: str | Path | Literal["auto"] | None = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Judge frozen features with labelled images.

    protocols: of "knn", "linear", "ridge". Everything a probe chooses, it chooses on the train part.
    model: a run folder, a weights file, `timm:NAME` or `hf:NAME` (docs/weights.md); allow_partial: also where
        many of its parameters are not in the file.
    floors: raw pixels and the same network untrained, judged alike.
    json: a file to write `Evaluation.to_json()` to.
    cache: folder for computed features; "auto": `features` beside the weights; None: no caching.
    Raises ValueError where there are no labels, too few images, or none that can be read.
    """
    if unknown := [p for p in protocols if p not in PROTOCOLS]:
        raise ValueError(f"protocol {unknown[0]!r}: choose among {', '.join(PROTOCOLS)}")
    if not protocols:
        raise ValueError(f"no protocol given: choose among {', '.join(PROTOCOLS)}")
    where = devices.pick_device(device)
    loaded = model if isinstance(model, Model) else weights.load(model, allow_partial=allow_partial)
    images = labelled if isinstance(labelled, Images) else index.open_images(labelled)
    source = str(getattr(images, "source", "images"))
    if images.labels is None:
        raise ValueError(
            f"{source} has no labels: give class folders, or a manifest with the columns path and label"
        )
    train, test, description = splitting.train_test(images, seed)
    rows = np.sort(np.concatenate([train, test]))
    rows = rows[images.labels[rows] >= 0]
    used = images.subset(rows)

    features = _features(
        loaded,
        used,
        where,
        devices.pick_precision(precision, where),
        _cache(model, cache),
        seed,
        floors,
        progress,
    )
    kept = features["trained"].indices
    for found in features.values():
        kept = np.intersect1d(kept, found.indices)
    setting = Setting(images.labels[rows[kept]], np.isin(rows[kept], test), description, seed, where)

    results: list[Result] = []
    correct: dict[Answered, np.ndarray] = {}  # right or wrong, an entry a test image
    for subject, found in features.items():
        data = _split(found, kept, setting)
        about = _about(subject, found, loaded.preprocess)
        for protocol in dict.fromkeys(protocols):
            if progress:
                progress(f"{NAMES[protocol]} on {subject}", len(kept), len(kept))
            for predictions, said in _answers(protocol, data, setting):
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
    skipped = (*getattr(images, "skipped", ()), *features["trained"].bad)
    evaluation = Evaluation(
        model=str(getattr(model, "name", "model")) if isinstance(model, Model) else str(model),
        digest=loaded.digest,
        data=source,
        results=tuple(results),
        comparisons=tuple(_comparisons(correct, seed)),
        notes=tuple(_notes(loaded, images, source, len(images) - len(rows), len(skipped))),
        skipped=tuple((str(path), str(reason)) for path, reason in skipped),
    )
    if json is not None:
        _write(Path(json), evaluation.to_json())
    if not isinstance(model, Model) and RunFolder(Path(model)).config():
        _write(Path(model) / EVALUATION, evaluation.to_json())  # for the run's report
    return evaluation


# ---------------------------------------------------------------- steps
def _features(
    model: Model,
    images: Images,
    device: torch.device,
    precision: torch.dtype,
    cache: Path | None,
    seed: int,
    floors: bool,
    progress: Progress | None,
) -> dict[Subject, FeatureSet]:
    """Features of the same images by each subject."""

    def counted(text: str) -> Callable[[int, int], None] | None:
        return partial(progress, text) if progress else None

    def of(subject: Model, text: str) -> FeatureSet:
        return extract(
            subject.encoder,
            images,
            subject.preprocess,
            device,
            precision,
            cache=cache,
            model_digest=subject.digest,
            progress=counted(text),
        )

    found: dict[Subject, FeatureSet] = {"trained": of(model, "features, trained")}
    if floors:
        found["untrained"] = of(model.untrained(seed), "features, untrained")
        found["pixels"] = pixels(images, model.preprocess, progress=counted("pixels"))
    return found


def _split(features: FeatureSet, kept: Int[np.ndarray, "n"], setting: Setting) -> Split:
    vectors = features.vectors[np.searchsorted(features.indices, kept)]
    test = setting.is_test
    return Split(vectors[~test], setting.labels[~test], vectors[test], setting.labels[test])


def _answers(
    protocol: str, data: Split, setting: Setting
) -> Iterator[tuple[Int[np.ndarray, "m"], dict[str, Any]]]:
    """Predictions of the test part, with the fields of Result that the protocol knows."""
    device = setting.device if setting.device.type == "cuda" else "cpu"  # fp64 is missing elsewhere
    if protocol == "knn":
        for k, predictions in knn.predict_each(data, device=device).items():
            yield predictions, {"k": k, "T": knn.TEMPERATURE}
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
            interval95=interval.paired(ours, floor, seed),
        )


def _notes(model: Model, images: Images, source: str, unused: int, skipped: int) -> Iterator[str]:
    yield from model.provenance.get("loaded", ())  # what became of a published file's tensors
    fingerprint = model.provenance.get("fingerprint")
    same = fingerprint is not None and fingerprint == getattr(images, "fingerprint", None)
    if same or model.provenance.get("images") == source:
        part = str(model.provenance.get("part"))
        which = {"train": "its train part alone", "all": "all of its images, the test part's included"}
        yield (
            f"the encoder was pretrained on this source ({which.get(part, 'which part is not recorded')}); "
            "labels were not used then"
        )
    if unused:
        yield f"{unused:,} images without a label, or in neither part, were left out"
    if skipped:
        yield f"{skipped:,} images could not be read and were left out"


def _cache(model: str | Path | Model, cache: str | Path | None) -> Path | None:
    if cache != "auto":
        return None if cache is None else Path(cache)
    if isinstance(model, Model):
        return None
    folder = Path(model)
    if not folder.exists():  # published weights, by name
        return cache_folder() / "features"
    return (folder if folder.is_dir() else folder.parent) / "features"


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.partial")
    unfinished.write_text(json_.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, file)
