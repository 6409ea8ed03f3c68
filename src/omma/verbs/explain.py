"""`omma explain`: what a model looks at in images, and what its answers rest on, as a page and as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from omma import weights
from omma.core import device as devices
from omma.core import outputs
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.core.progress import StageProgress
from omma.core.protocols import ImageSource
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.inspection import checks, registry
from omma.inspection.gathering import captions, gather
from omma.inspection.kinds import Explanation, silent
from omma.inspection.maps import on_device, subject_of
from omma.pretraining import saved_method
from omma.reporting.explain_page import facts_of, write_page
from omma.weights import Model


@dataclass(frozen=True)
class Explained(Displayed):
    """What was found; arrays[kind] is [n, rows, columns], or as the kind says (docs/explain.md)."""

    arrays: dict[str, np.ndarray] = field(repr=False)
    paths: tuple[str, ...]  # of the images that were explained
    names: tuple[str, ...]  # what was explained of each: a class, or its likeness to itself
    explanations: tuple[Explanation, ...] = field(repr=False)
    page: Path | None = None
    bad: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (path, reason) of images left out
    notes: tuple[str, ...] = ()


@translated()
def explain(
    model: str | Path | Model,
    images: ImageSource,
    out: str | Path | None = None,
    *,
    what: Sequence[str] = (),
    class_name: str | None = None,
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    test: Sequence[str] = (),
    most: int = 16,
    image_size: int | None = None,
    gallery: ImageSource | None = None,
    features: Sequence[int] = (),
    label_depth: LabelDepth | None = None,
    device: str = "auto",
    precision: str = "fp32",
    architecture: str | None = None,
    allow_partial: bool = False,
    seed: int = 0,
    progress: StageProgress = silent,
) -> Explained:
    """Explain a model on some images; with `out`, as an HTML page.

    images: one source or several; at most `most` are drawn. what: kinds (`inspection.registry.KINDS`); by
    default those that the model can have. class_name: a class of its classifier, or words for its text tower;
    without it each image's likeliest class, or without a classifier its likeness to itself. layers, heads: of
    attention. test: "sanity" and "insertion", of the kinds that are drawn. image_size: pixels of the input
    instead of the model's. gallery: images for kinds that look for examples. features: numbers of those that
    class-max and patches show. Others: as for evaluate. Raises ValueError for a kind that the model cannot
    have, naming those that it can, and if no image can be read.
    """
    if out is not None:
        outputs.check_file(out)
    if most < 1:
        raise ValueError(f"--most {most}: must be at least 1")
    registry.check(tuple(what))
    checks.known(tuple(test))
    where = devices.pick_device(device)
    loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
    used = on_device(loaded, where, devices.pick_precision(precision, where), image_size)
    several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    found = gather(several, used.preprocess, most, seed, label_depth)
    subject, answers = subject_of(
        used,
        found.pixels,
        class_name,
        paths=found.paths,
        gallery=None if gallery is None else collection.opened(gallery, label_depth),
        layers=tuple(layers),
        heads=tuple(heads),
        seed=seed,
        options={"features": tuple(features), "method": saved_method.of(model, what)},
        progress=progress,
    )
    kinds = registry.chosen(tuple(what), subject)
    made = [kind.explain(subject) for kind in kinds]
    for one in test:
        made = checks.applied(one, kinds, made, subject)
    notes = (*loaded.provenance.get("loaded", ()), *found.notes)
    page = None
    if out is not None:
        page = write_page(
            Path(out), f"{name}: what it sees", made, subject.shown, labels=captions(answers, found.labels),
            paths=found.paths, facts=facts_of(name, subject), notes=notes,
        )  # fmt: skip
    arrays = {key: array for each in made for key, array in each.arrays.items()}
    every = (*notes, *(note for each in made for note in each.notes))
    return Explained(arrays, found.paths, subject.target.names, tuple(made), page, found.bad, every)
