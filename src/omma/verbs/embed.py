"""`omma embed`: one vector an image, as a table that says where it came from."""

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from omma import weights
from omma.core import dist, files, launcher, outputs
from omma.core.checks import one_of
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.core.protocols import Images, ImageSource
from omma.data.batches.preprocess import as_dict
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.data.sources.values import input_notes
from omma.features import formats, ray
from omma.features.extract import batch_size
from omma.features.local import local_engine
from omma.features.table import ShardedTable, shard_size, table_key, table_schema
from omma.weights import Model

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Embedded(Displayed):
    """What was written."""

    path: Path
    rows: int
    dim: int
    bad: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (path, reason) of images left out
    notes: tuple[str, ...] = ()  # what became of a file's tensors, of values, and how labels were read
    resumed: int = 0  # images that a run which was stopped had embedded already


@dist.process_group()
@translated()
def embed(
    model: str | Path | Model,
    images: ImageSource,
    out: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch: int | None = None,
    architecture: str | None = None,
    allow_partial: bool = False,
    label_depth: LabelDepth | None = None,
    engine: str = "local",
    progress: Callable[[int, int], None] | None = None,
) -> Embedded:
    """Write the pooled features of all readable images, in order, to `out`: .parquet, .csv or .npz.

    Columns: `path`, `label` (the class's name, null if unknown; if any image is labelled), `vector`
    (float32). A .csv has a column for each number; an .npz has arrays of vectors, paths and labels.
    Parquet's metadata and the .npz hold the conditions as JSON under "omma". `out` appears when complete;
    the same call again continues from shards beside it. engine: "local" (this process and those of torchrun)
    or "ray" (workers of a cluster). progress: images done and in all. Others: as for evaluate. Raises
    ValueError if no image can be read.
    """
    formats.check_ending(out)
    one_of("engine", engine, ENGINES)
    if engine == "ray" and launcher.ranks().world_size > 1:
        raise ValueError("engine ray starts processes of its own: leave torchrun out, or choose engine local")
    dist.on_first(lambda: outputs.check_file(out))
    with ExitStack() as stack:
        if engine == "local":
            workers = local_engine(device, precision)
        else:
            workers = stack.enter_context(ray.ray_engine(device, precision))
        with dist.sequentially():
            loaded = weights.load(model, architecture=architecture, allow_partial=allow_partial)
            opened = collection.opened(images, label_depth)
        batch = batch or batch_size(loaded.preprocess, workers.device)
        table = _table(loaded, opened, Path(out), workers.precision, batch, workers.processes)
        dist.on_first(lambda: stack.enter_context(table.locked()))
        missing = dist.on_first(table.missing)
        own, done = workers.share(missing), 0
        with dist.propagate_errors():
            for count in workers.fill(table, own, loaded.encoder, loaded.preprocess, batch):
                done += count
                if progress:
                    progress(done, table.count_images(own))
        joined = dist.on_first(table.join)
    return Embedded(
        path=Path(out),
        rows=joined.rows,
        dim=loaded.encoder.dim,
        bad=joined.bad,
        notes=(*loaded.provenance.get("loaded", ()), *input_notes(opened, loaded.preprocess)),
        resumed=len(opened) - table.count_images(missing),
    )


def _table(
    model: Model, images: Images, out: Path, precision: torch.dtype, batch: int, processes: int
) -> ShardedTable:
    """The table to write, the same on all processes; ValueError if they see different images."""
    fingerprint = getattr(images, "fingerprint", None)
    spec = model.encoder.described()
    facts = {"digest": model.digest, "spec": spec, "preprocess": as_dict(model.preprocess)}
    source = str(getattr(images, "source", ""))
    provenance: dict[str, Any] = {
        "schema": 1,
        "omma": files.omma_version(),
        "model": {**facts, "provenance": model.provenance},
        "data": {"source": source, "fingerprint": fingerprint, "images": len(images)},
        "pooling": "pooled",
        "precision": str(precision).removeprefix("torch."),
    }
    size = shard_size(len(images), batch, processes)
    key = table_key(provenance, size, batch)
    dist.require_same("model and images", key)
    if fingerprint is None:  # existing shards may be of other images
        key = dist.broadcast(uuid.uuid4().hex)
    columns = table_schema(model.encoder.dim, images.labels is not None, provenance)
    return ShardedTable(out.absolute(), images, columns, size, key)  # processes may have other folders
