"""Curves over numbers of labels: several adapters, fitted on few labels and on more, and one test part."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.adaptation import curve_probes, curve_store
from omma.adaptation.curve_fits import Recipe, Trainer, recipe
from omma.adaptation.curve_probes import FEATURES as PROBES
from omma.core.progress import StageProgress
from omma.core.protocols import Images
from omma.core.words import count, enumerated
from omma.data.sources import groups as grouping
from omma.data.sources import label_sets, split
from omma.data.sources.groups import Groups
from omma.data.sources.indexed import IndexedImages
from omma.evaluation import grouped
from omma.evaluation.curve import NAMES, PIXELS, SCRATCH, Cell, Curve, Labels, is_floor, protocol
from omma.features.extract import extract, pixels
from omma.weights import Model

FILE = "curve.jsonl"  # of the fits that are done, in the folder of cached features
ADAPTERS = (*PROBES, "lora", "vpt", "bias", "full", SCRATCH)  # by default


class _Data(NamedTuple):
    """Images of both parts that can be read, with their vectors."""

    images: IndexedImages  # train part, then test part
    train: int  # images of the train part
    labels: Int[np.ndarray, "n"]
    vectors: dict[str, Float[np.ndarray, "n d"]]  # by what stands before a probe's name
    split: str
    bad: int
    groups: Int[np.ndarray, "m"] | None  # of the test part
    notes: tuple[str, ...]  # on groups


def check_adapters(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is none."""
    known = [name for name in NAMES if not is_floor(name)]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--adapt {unknown[0]}: a curve has {enumerated(known)}")


def curve(
    model: Model,
    name: str,
    images: Images,
    *,
    labels: Sequence[Labels],
    seeds: int = 5,
    adapters: Sequence[str] = ADAPTERS,
    device: torch.device,
    precision: torch.dtype,
    seed: int = 0,
    group: str | None = None,
    cache: Path | None = None,
    progress: StageProgress | None = None,
) -> Curve:
    """Fit each adapter on each number of labels, `seeds` times, and judge all on the same test part.

    name: of the model, for people. labels: ascending. A seed draws its labelled images from the train part;
    the test part is that of `split.train_test`, by `group` as of `groups.of`. Networks are trained by
    `finetune`, for fixed steps, as runs in a temporary folder. cache: a folder that keeps features and
    finished fits, so that the same call goes on where it was stopped.
    Raises ValueError for images without labels or with several each, and for unknown adapters.
    """
    check_adapters(adapters)
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: must be at least 1")
    belongs = grouping.of(images, group)
    data = _read(model, images, device, precision, seed, belongs, cache, progress)
    store = curve_store.Store(None if cache is None else cache / FILE)
    test_labels = data.labels[data.train :]
    trainer = Trainer(
        model=model,
        images=data.images,
        test=data.images.subset(np.arange(data.train, len(data.images))),
        device=device,
        precision=precision,
    )
    every = _in_order(adapters)
    shared = {
        "model": model.digest,
        "data": data.images.fingerprint,
        "train": data.train,
        "precision": str(precision),
        "device": device.type,
    }
    cells, recipes, done = [], dict[str, Any](), 0
    for each in labels:
        drawn = [_draw(data, each, seed + s) for s in range(seeds)]
        for adapter in every:
            by = None if _is_probe(adapter) else recipe(adapter, len(drawn[0]))
            recipes |= {} if by is None else {f"{adapter} at {each}": by.facts()}
            correct = []
            for s, rows in enumerate(drawn):
                facts = {"adapter": adapter, "labels": str(each), "seed": seed + s}
                key = curve_store.key(**shared, **facts, recipe=None if by is None else by.facts())
                answers = store.get(key)
                if answers is None:
                    answers = _fit(data, trainer, adapter, rows, seed + s, by) == test_labels
                    store.put(key, answers, facts)
                correct.append(answers)
                done += 1
                if progress:
                    total = len(labels) * len(every) * seeds
                    progress(f"{NAMES[adapter]}, {each} labels", done, total)
            answered = np.stack(correct)
            cells.append(
                Cell(adapter=adapter, labels=each, images=len(drawn[0]), correct=answered, groups=data.groups)
            )
    return Curve(
        model=name,
        digest=model.digest,
        data=str(getattr(images, "source", "images")),
        cells=tuple(cells),
        protocol=protocol(data.split, seeds, len(test_labels)),
        recipes=recipes,
        notes=tuple(_notes(data, labels)),
    )


def _read(
    model: Model,
    images: Images,
    device: torch.device,
    precision: torch.dtype,
    seed: int,
    groups: Groups | None,
    cache: Path | None,
    progress: StageProgress | None,
) -> _Data:
    source = str(getattr(images, "source", "images"))
    if label_sets.of(images) is not None:
        raise ValueError(label_sets.refusal(source, images.classes, "a curve"))
    if not isinstance(images, IndexedImages):
        raise ValueError("a curve needs images that `open_images` opened; give their path")
    train, test, description = split.train_test(images, seed, groups=groups)
    both = images.subset(np.concatenate([train, test]))

    def tell(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(stage, done, total) if progress else None

    features = extract(
        model.encoder, both, model.preprocess, device, precision,
        cache=cache, model_digest=model.digest, progress=tell("features"),
    )  # fmt: skip
    raw = pixels(both, model.preprocess, progress=tell("pixels"))
    readable = np.intersect1d(features.indices, raw.indices)
    vectors = {
        name: each.vectors[np.searchsorted(each.indices, readable)]
        for name, each in (("", features), (PIXELS, raw))
    }
    assert images.labels is not None
    kept = both.subset(readable)
    assert kept.labels is not None
    parts = grouped.Parts()
    if groups is not None:
        groups = groups.of_rows(np.concatenate([train, test])[readable])
        parts = grouped.parts(groups, readable >= len(train), kept.labels, (), seed)
    return _Data(
        images=kept,
        train=int((readable < len(train)).sum()),
        labels=kept.labels,
        vectors=vectors,
        split=description,
        bad=len(both) - len(readable),
        groups=parts.test,
        notes=parts.notes,
    )


def _draw(data: _Data, labels: Labels, seed: int) -> Int[np.ndarray, "n"]:
    known = data.labels[: data.train]
    if labels.shots is not None:
        return split.shots(known, labels.shots, seed)
    assert labels.share is not None
    return split.fraction(known, labels.share, seed)


def _in_order(adapters: Sequence[str]) -> list[str]:
    """The adapters and all floors, as tables show them."""
    every = {*adapters, *PROBES, *(PIXELS + name for name in PROBES)}
    return [name for name in NAMES if name in every]


def _is_probe(adapter: str) -> bool:
    return adapter.removeprefix(PIXELS) in PROBES


def _fit(
    data: _Data, trainer: Trainer, adapter: str, rows: Int[np.ndarray, "n"], seed: int, by: Recipe | None
) -> Int[np.ndarray, "m"]:
    if by is not None:
        return trainer(adapter, rows, seed, by)
    vectors = data.vectors[PIXELS if is_floor(adapter) else ""]
    probe = (curve_probes.PIXELS if is_floor(adapter) else PROBES)[adapter.removeprefix(PIXELS)]
    return probe(vectors[rows], data.labels[rows], vectors[data.train :], seed)


def _notes(data: _Data, labels: Sequence[Labels]) -> Iterator[str]:
    yield (
        "networks are trained for a fixed number of steps: with few labels none can be held out, so nothing "
        "stops early and nothing is chosen; each interval is a 95 % one by itself"
    )
    yield from data.notes
    sizes = np.bincount(data.labels[: data.train])
    most = max((each.shots or 0 for each in labels), default=0)
    if (short := int(((sizes > 0) & (sizes < most)).sum())) > 0:
        has = "class has" if short == 1 else "classes have"
        yield f"{short:,} {has} fewer images than {most} to draw from: all of them are used"
    if data.bad:
        yield f"left out, cannot be read: {count(data.bad, 'image')}"
