"""`omma evaluate`: what the features of a model are worth on labelled images, beside two floors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from omma import weights
from omma.core import device as devices
from omma.core import files, outputs
from omma.core.checks import either
from omma.core.explain import translated
from omma.core.progress import StageProgress
from omma.core.protocols import ImageSource
from omma.data.sources import collection, groups, trained_on
from omma.data.sources.layout import LabelDepth
from omma.data.sources.selection import split_by
from omma.data.sources.taxonomy import read as read_taxonomy
from omma.evaluation import check_protocols, history, judge_targets, metric_groups
from omma.evaluation.answers import default_protocols
from omma.evaluation.combine import combined, judgements
from omma.evaluation.job import Job, features_cache, text_reader
from omma.evaluation.verdict import Evaluation
from omma.pretraining.folder import EVALUATION, RunFolder
from omma.weights import Model


@translated()
def evaluate(
    model: str | Path | Model,
    labelled: ImageSource,
    *,
    protocol: str | Sequence[str] = (),
    protocols: str | Sequence[str] | None = None,
    metrics: Sequence[str] = (),
    taxonomy: str | Path | None = None,
    label_depth: LabelDepth | None = None,
    train_on: Sequence[str] = (),
    test_on: Sequence[str] = (),
    group: str | None = None,
    target: str | None = None,
    target_period: float | None = None,
    prompts: str | Path | None = None,
    descriptions: str | Path | None = None,
    merges: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    floors: bool = True,
    architecture: str | None = None,
    allow_partial: bool = False,
    json: str | Path | None = None,
    cache: str | Path | Literal["auto"] | None = "auto",
    progress: StageProgress | None = None,
) -> Evaluation:
    """Judge frozen features with labelled images, or with captions.

    protocol, or by its other name protocols: one or several of "knn", "linear", "ridge"; "classifier", the
    model's own; "image-retrieval", of images of the same label or instance; with a text tower
    (docs/clip.md) "zeroshot", which tells classes by their names,
    and "retrieval" between images and captions. By default knn and linear, and the classifier where its
    classes are those of the images. Everything a probe chooses, it chooses on the train part.
    metrics: groups of further metrics, or "all" (docs/evaluate.md). taxonomy: a file with groups of the
    classes, for the severity of mistakes.
    label_depth: which folder names the class, as `open_images` takes it.
    train_on, test_on: parts of the collection, as COLUMN=VALUE (`split_by`), instead of its own split.
    group: the column of images that belong together, of which splits and intervals take whole ones
    (`groups.of`): by default `sequence` where it exists; "none": none do.
    target: a column of numbers that ridge and k-NN regress, instead of labels; target_period: that of angles.
    prompts: a file of templates for zero-shot, one a line ("a photo of a {}."). descriptions: a JSON file of
    sentences about each class. merges: the tokenizer's, for published CLIP weights that lie without it.
    model: a run folder, a weights file, `timm:NAME` or `hf:NAME` (docs/weights.md); architecture: as
        `omma.load` takes it; allow_partial: also where
        many of its parameters are not in the file.
    floors: judge raw pixels and the same network untrained by the same protocols.
    json: a file to write `Evaluation.to_json()` to.
    cache: folder for computed features; "auto": `features` beside the weights; None: no caching.
    Raises ValueError where there are no labels or captions, too few images, or none that can be read, and
    where a protocol needs a text tower and the model has none.
    """
    protocols = either("protocol", protocol, "protocols", protocols)
    check_protocols(protocols)
    chosen = metric_groups(metrics)
    tree = None if taxonomy is None else read_taxonomy(taxonomy)
    if json is not None:
        outputs.check_file(json, "--json")
    where = devices.pick_device(device)
    loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
    images = split_by(collection.opened(labelled, label_depth), train_on, test_on)
    if target is not None or target_period is not None:
        protocols, regressed = judge_targets.checked(protocols, target, target_period, chosen, tree)
    else:
        protocols, regressed = protocols or default_protocols(loaded, images.classes), None
    read = None
    if "zeroshot" in protocols or "retrieval" in protocols:
        read = text_reader(loaded, name, prompts, merges, descriptions)
    elif any(file is not None for file in (prompts, descriptions, merges)):
        raise ValueError("prompts, descriptions and merges are for the protocols zeroshot and retrieval")
    job = Job(
        model=loaded,
        images=images,
        source=str(getattr(images, "source", "images")),
        device=where,
        precision=devices.pick_precision(precision, where),
        cache=features_cache(model, cache),
        seed=seed,
        floors=floors,
        progress=progress,
        text_reader=read,
        metrics=chosen,
        taxonomy=tree,
        groups=groups.of(images, group),
        target=regressed,
        trained_on=None if isinstance(model, Model) else trained_on.read(Path(model)),
    )
    evaluation = combined(job, name, judgements(job, protocols))
    if json is not None:
        files.write_json(Path(json), evaluation.to_json())
    if not isinstance(model, Model) and RunFolder(Path(model)).config():
        evaluation = history.record(Path(model) / EVALUATION, evaluation)  # for the run's report
    return evaluation
