"""`omma evaluate --curve`: what labels are worth, and which adapter makes the most of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from omma import weights
from omma.adaptation import curve as curves
from omma.core import device as devices
from omma.core import files, outputs
from omma.core.explain import translated
from omma.core.protocols import ImageSource
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.data.sources.selection import split_by
from omma.evaluation.curve import Curve, parse
from omma.evaluation.job import features_cache
from omma.pretraining.folder import CURVE, RunFolder
from omma.reporting.curve_chart import draw


@translated()
def curve(
    model: str | Path,
    labelled: ImageSource,
    *,
    labels: str = "1,2,4,8,16",
    seeds: int = 5,
    adapters: Sequence[str] = (),
    label_depth: LabelDepth | None = None,
    train_on: Sequence[str] = (),
    test_on: Sequence[str] = (),
    group: str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    architecture: str | None = None,
    allow_partial: bool = False,
    json: str | Path | None = None,
    cache: str | Path | Literal["auto"] | None = "auto",
    progress: curves.StageProgress | None = None,
) -> Curve:
    """Fit adapters on few labels and on more, several times each, and judge all on the same test images.

    labels: numbers of labels a class ("1,2,4,8,16"), or shares of all ("1%,10%"). seeds: how many times, each
    with other labelled images. adapters: some of `evaluation.curve.NAMES`; by default
    `adaptation.curve.ADAPTERS`. Class means, k-NN, the hinge loss and the linear head, on features and on raw
    pixels, always stand beside.
    json: a file to write `Curve.to_json()` to; the chart is written beside it. cache: folder of features and
    finished fits, "auto" as for `evaluate`; the same call again goes on where it was stopped.
    The other arguments are those of `evaluate`. A run folder also gets curve.json and curve.svg, which its
    report shows. Raises ValueError for images without labels, and for unknown adapters.
    """
    wanted, names = parse(labels), tuple(adapters) or curves.ADAPTERS
    curves.check_adapters(names)
    if json is not None:
        outputs.check_file(json, "--json")
    where = devices.pick_device(device)
    result = curves.curve(
        weights.load(model, architecture=architecture, allow_partial=allow_partial),
        str(model),
        split_by(collection.opened(labelled, label_depth), train_on, test_on),
        labels=wanted,
        seeds=seeds,
        adapters=names,
        device=where,
        precision=devices.pick_precision(precision, where),
        seed=seed,
        group=group,
        cache=features_cache(model, cache),
        progress=progress,
    )
    content, targets = result.to_json(), [] if json is None else [Path(json)]
    if RunFolder(Path(model)).config():
        targets.append(Path(model) / CURVE)  # for the run's report
    for target in targets:
        files.write_json(target, content)
        with files.atomic_write(target.with_suffix(".svg")) as partial:
            partial.write_text(draw(content), encoding="utf-8")
    written = [file for target in targets for file in (target, target.with_suffix(".svg"))]
    return replace(result, files=tuple(map(str, written)))
