"""`omma explain --shape-texture`: does a model decide by shape or by texture?"""

from pathlib import Path

from omma import weights
from omma.backbones.layers import text
from omma.core import device as devices
from omma.core import files, outputs
from omma.core.explain import translated
from omma.core.progress import StageProgress
from omma.core.protocols import ImageSource
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.evaluation.job import Job, features_cache, text_reader
from omma.inspection.shape_texture import ShapeTexture, judge
from omma.reporting.shape_texture_page import write_page
from omma.weights import Model


@translated()
def shape_texture(
    model: str | Path | Model,
    pictures: ImageSource,
    labelled: ImageSource | None = None,
    *,
    out: str | Path | None = None,
    json: str | Path | None = None,
    floors: bool = True,
    label_depth: LabelDepth | None = None,
    device: str = "auto",
    precision: str = "auto",
    architecture: str | None = None,
    allow_partial: bool = False,
    seed: int = 0,
    progress: StageProgress | None = None,
) -> ShapeTexture:
    """The cue-conflict test [Geirhos 2019, arXiv 1811.12231] (docs/shape_texture.md).

    pictures: a table with the columns path, shape and texture. The model's own classifier decides where it
    has ImageNet's classes or the pictures' ones, its text tower by their names, and with `labelled`, photos
    of the same classes, k-NN and a linear probe. floors: the same network untrained and, with `labelled`, raw
    pixels. out: an HTML page. json: a file for `ShapeTexture.to_json()`. Others: as for evaluate. Raises
    ValueError for pictures without such columns or without a conflict, and where nothing can decide.
    """
    for file, option in ((out, "--out"), (json, "--json")):
        if file is not None:
            outputs.check_file(file, option)
    where = devices.pick_device(device)
    loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
    images = collection.opened(pictures)
    job = Job(
        model=loaded,
        images=images,
        source=str(getattr(images, "source", "pictures")),
        device=where,
        precision=devices.pick_precision(precision, where),
        cache=features_cache(model, "auto"),
        seed=seed,
        floors=floors,
        progress=progress,
        text_reader=text_reader(loaded, name) if text.TABLE in loaded.extras.tensors else None,
    )
    found = judge(job, name, None if labelled is None else collection.opened(labelled, label_depth))
    if json is not None:
        files.write_json(Path(json), found.to_json())
    if out is not None:
        write_page(Path(out), found, images)
    return found
