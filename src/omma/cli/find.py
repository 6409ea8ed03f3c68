"""Commands that find images: `omma index` and `omma search`."""

import json as js
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table
from rich.text import Text

from omma.cli import early
from omma.cli.shared import As_, File_, LabelDepth, Place_, finished, say, show, skipped_lines
from omma.cli.stages import Stages
from omma.core import outputs
from omma.core.errors import printable
from omma.core.words import count, enumerated

Model_ = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Images_ = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
Index_ = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
Query_ = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="QUERY")]
Others_ = Annotated[tuple[str, ...], tyro.conf.arg(metavar="QUERY")]
Table_ = Annotated[str | None, tyro.conf.arg(metavar="TABLE.parquet")]
Crop_ = Annotated[str | None, tyro.conf.arg(metavar="X,Y,W,H")]
Condition_ = Annotated[str | None, tyro.conf.arg(metavar="CONDITION")]
Page_ = Annotated[Path | None, tyro.conf.arg(metavar="PAGE.html")]
Server_ = Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")]
Given_ = Annotated[str | None, tyro.conf.arg(metavar="MODEL")]
COLUMNS = 6  # beside path and similarity, that are printed


def index(
    model: Model_ = None,
    images: Images_ = None,
    /,
    *,
    out: str,
    vectors: Table_ = None,
    architecture: As_ = None,
    allow_partial: bool = False,
    label_depth: LabelDepth = None,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "exact",
    to: Server_ = None,
    seed: int = 0,
) -> int:
    """Make an index of images to search in, or bring one up to date: only what is new is embedded.

    Stopped at any time, it opens with all that was in it, and the same command goes on.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        images: Images, in any form that pretrain accepts.
        out: The folder of the index.
        vectors: Instead of images: the table that omma embed has written; MODEL may then be left out.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        label_depth: Folder that names the class, as for evaluate.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        engine: exact; or lancedb, which is faster from about a million images on, and finds most of them.
        to: Server to copy the index to: qdrant+http://HOST:6333/COLLECTION or
            postgresql://USER@HOST/DATABASE?table=TABLE.
        seed: Seed of the queries that measure what an engine or server finds.
    """
    if model is not None:
        early.model(model)
    if images is not None:
        early.images(images)
    outputs.check_folder(out)
    with Stages(f"reading {vectors or images or out} ...") as stages:
        from omma.core.device import keep_memory, share_cores
        from omma.retrieval import servers
        from omma.verbs.index import index as verb

        keep_memory()
        share_cores()
        result = verb(
            model, images, out, vectors=vectors, architecture=architecture, allow_partial=allow_partial,
            label_depth=label_depth, device=device, precision=precision, engine=engine, to=to, seed=seed,
            progress=partial(stages, "in the index"),
        )  # fmt: skip
    for note in result.notes:
        say(note)
    kinds = ("added", "changed", "moved", "removed", "kept")
    done = [f"{getattr(result, kind):,} {kind}" for kind in kinds if getattr(result, kind)]
    changes = f": {enumerated(done)}" if done else ""
    say(f"{count(result.rows, 'image')} of {result.dim} dimensions in {out}{changes}")
    if result.recall is not None:
        say(f"approximate engine {engine}: {result.recall} against the exact search")
    if result.sent is not None:
        say(f"sent to {servers.shown(str(to))}: {result.sent} against the exact search")
    skipped_lines(result.bad)
    return finished(result)


def search(
    index: Index_,
    query: Query_,
    minus: Others_ = (),
    crop: Crop_ = None,
    top: int = 20,
    where: Condition_ = None,
    engine: str = "auto",
    page: Page_ = None,
    model: Given_ = None,
    merges: File_ = None,
    out: Place_ = None,
    json: File_ = None,
    device: str = "auto",
) -> int:
    """Find the images of an index that are nearest to images, to a region of one, or to a text.

    Args:
        index: The folder that omma index has written.
        query: An image, the path of an image in the index, or a text (of a model with a text tower); of
            several the mean.
        minus: What to avoid, likewise.
        crop: A region of the one image that is given, in pixels or as shares of width and height.
        top: Images to find.
        where: Only images whose columns meet this, as "label = 'cat' and year > 2020".
        engine: exact, lancedb (if the index has it: about the nearest), or auto.
        page: Web page to write, with pictures of what was found.
        model: The index's model, where it has moved.
        merges: The tokenizer's merges, for published CLIP weights without them.
        out: Table of what was found to write: .csv, .parquet or .jsonl.
        json: File to write what was found to, as JSON.
        device: cpu, cuda or mps.
    """
    if not query:
        raise ValueError("nothing to search for: give an image, a path of the index or a text")
    if out is not None:
        early.answers(out)
    for option, file in (("--json", json), ("--page", page)):
        if file is not None:
            outputs.check_file(file, option)
    box = None if crop is None else _box(crop)
    with Stages(f"reading {index} ..."):
        from omma.verbs.search import search as verb

        result = verb(
            index, list(query), minus=minus, crop=box, top=top, where=where, engine=engine, page=page,
            model=model, merges=merges, device=device,
        )  # fmt: skip
    _print(result)
    for note in result.notes:
        say(note)
    if out is not None:
        from omma.features import records

        with records.writer(Path(out), result.table.schema) as write:
            write(result.table)
    found = {
        "schema": 1, "index": str(result.index), "query": list(query), "minus": list(minus), "crop": box,
        "where": where, "exact": result.exact,
        "found": [{k: _plain(v) for k, v in row.items()} for row in result.table.to_pylist()],
    }  # fmt: skip
    if json is not None:
        from omma.core import files

        files.write_json(json, found)
    return finished(found)


def _box(crop: str) -> Any:
    """The four numbers of --crop."""
    try:
        numbers = [float(each) for each in crop.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise ValueError(f"--crop {crop}: give x,y,width,height, such as 10,20,200,150 or .1,.1,.5,.5")
    return tuple(numbers)


def _print(result: Any) -> None:
    """Similarity and path, and the first of the other columns."""
    if not result.paths:
        say("no image of the index meets the condition")
        return
    names = [n for n in result.table.column_names if n not in ("path", "similarity")]
    names = [n for n in names if result.table[n].null_count < len(result.table)][:COLUMNS]
    table = Table(box=None, pad_edge=False)
    for name in ("similarity", "path", *names):
        table.add_column(name, justify="right" if name == "similarity" else "left", overflow="fold")
    for row in result.table.to_pylist():
        values = ["" if row[name] is None else printable(str(row[name])) for name in names]
        table.add_row(f"{row['similarity']:.4f}", Text(printable(row["path"])), *map(Text, values))
    show(table)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    try:
        js.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value
