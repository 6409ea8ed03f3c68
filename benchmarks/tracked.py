"""What the benchmarks of sequences share: tables by group, and the whole method of a run."""

import csv
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omma import backbones, methods, weights
from omma.core.protocols import Context, Method
from omma.data.batches.preprocess import load_batch
from omma.data.sources.indexed import IndexedImages
from omma.pretraining import related
from omma.pretraining.folder import RunFolder
from omma.train import checkpoint

Row = Mapping[str, str]


def unpacked(archive: Path, folder: Path) -> list[dict[str, str]]:
    """The rows of labels.csv of an archive that is unpacked into the folder."""
    if not (folder / "labels.csv").exists():
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[Row]) -> Path:
    """A table of these rows."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def by_group(rows: Sequence[Row], column: str, share: float, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and those of a share of the groups, which are held out whole."""
    groups = sorted({row[column] for row in rows})
    held_out = set(np.random.default_rng(seed).permutation(groups)[: round(share * len(groups))])
    return [r for r in rows if r[column] not in held_out], [r for r in rows if r[column] in held_out]


def method_of(run: Path, images: IndexedImages, trained: bool = True, seed: int = 0) -> Method:
    """The method of a run, in evaluation mode; images: those it trained on. trained: or as it is built."""
    folder = RunFolder(run)
    config = folder.config()
    file, model = methods.get(config["method"]), weights.load(run)
    options: dict[str, Any] = config["settings"]["config"]
    settings = file.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    torch.manual_seed(seed)
    encoder = backbones.build(**model.encoder.spec())
    tracks = related.read(images, file.frames(settings), file.needs(settings).fields).tracks
    method = file.Method(encoder, settings, Context(image_size=config["image_size"], tracks=tracks))
    if trained:
        saved, _ = checkpoint.newest(folder.checkpoints)
        if saved is None:
            raise SystemExit(f"{run} has no checkpoint")
        checkpoint.restore(saved, method, None)
    return method.eval()


def pictures(run: Path, images: IndexedImages) -> Tensor:
    """All images, whole, as the run's encoder takes them: [n, c, s, s]."""
    preprocess = weights.load(run).preprocess
    views, good, _ = load_batch(
        images, np.arange(len(images)), replace(preprocess, crop_share=1.0), threads=2
    )
    assert good.all()
    return views


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], x: Tensor, batch: int = 64) -> Tensor:
    """The function of all rows."""
    return torch.cat([function(part) for part in x.split(batch)])


def interval(values: Iterable[float], groups: Iterable[Any], statistic: Any = np.mean, seed: int = 0) -> str:
    """A statistic of values with its 95 % interval, by a bootstrap of whole groups."""
    values = np.asarray(list(values))
    _, code = np.unique(np.asarray(list(groups)), return_inverse=True)
    rows = [np.flatnonzero(code == g) for g in range(code.max() + 1)]
    rng = np.random.default_rng(seed)
    draws = [
        statistic(values[np.concatenate([rows[g] for g in rng.integers(0, len(rows), len(rows))])])
        for _ in range(500)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{statistic(values):.3f} ({low:.3f} to {high:.3f})"
