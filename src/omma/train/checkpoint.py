"""Checkpoints: the whole state, written atomically, the last two kept; a file, or a folder of shards."""

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omma.core import dist, files
from omma.train import fsdp

KEPT = 2


@dataclass(frozen=True)
class Saved:
    """A checkpoint; of a folder, method and optimizer are empty here and read by `restore`."""

    method: dict[str, Any]
    optimizer: dict[str, Any]
    step: int
    total: int
    elapsed: float  # seconds of training so far, over all restarts
    notes: dict[str, Any]  # the caller's own: numbers, strings, lists
    folder: Path | None = None  # of shards


def save(
    folder: Path,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    total: int,
    elapsed: float,
    notes: dict[str, Any],
) -> Path:
    """Write `step-N.pt` under a temporary name, flush it to disk and rename it; only the last two stay.

    A sharded network is written to a folder `step-N` instead: then all processes must call, and process 0's
    numbers and notes count. Otherwise one process calls.
    """
    facts = {"step": step, "total": total, "elapsed": elapsed, "notes": notes}
    if fsdp.sharded(method):
        path = folder / f"step-{step:09d}"
        if dist.broadcast(path.exists()):  # resumed from it and stopped again before the first step
            return path
        _tidy(folder)
        from omma.train import sharded_checkpoint  # takes a while to import

        sharded_checkpoint.save(path, method, optimizer, facts)
        _prune(folder)
        return path
    path = folder / f"step-{step:09d}.pt"
    _tidy(folder)
    state = {"method": method.state_dict(), "optimizer": optimizer.state_dict(), **facts}
    with files.atomic_write(path, durable=True) as partial:
        torch.save(state, partial)
    _prune(folder)
    return path


def _tidy(folder: Path) -> None:
    """Remove incomplete files of a run that was killed while saving."""
    if dist.rank() == 0:
        for partial in folder.glob(".*.partial"):
            _remove(partial)


def _prune(folder: Path) -> None:
    """Keep the newest; folders are renamed before removal, so that half of one is no checkpoint."""
    if dist.rank() == 0:
        for old in paths(folder)[:-KEPT]:
            _remove(old.rename(old.with_name(f".{old.name}.partial")) if old.is_dir() else old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def paths(folder: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    return sorted((*folder.glob("step-*.pt"), *folder.glob("step-" + "[0-9]" * 9)), key=lambda p: p.stem)


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest readable checkpoint, and a message about each newer one that is damaged.

    Files are read with `weights_only` and cannot run code.
    """
    damaged = []
    for path in reversed(paths(folder)):
        try:
            if path.is_dir():
                from omma.train import sharded_checkpoint

                return Saved({}, {}, **sharded_checkpoint.facts(path), folder=path), damaged
            state = torch.load(path, map_location="cpu", weights_only=True)
            return Saved(**state), damaged
        except (
            OSError,
            RuntimeError,
            EOFError,
            TypeError,
            ValueError,
            KeyError,
            pickle.UnpicklingError,
        ) as error:
            damaged.append(f"{path.name} cannot be read ({type(error).__name__}) and is skipped")
    return None, damaged


def restore(saved: Saved, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill network and optimizer from a checkpoint; either of them, or both, may be sharded.

    All processes must call. Raises ValueError for a folder that turns out to be damaged.
    """
    if saved.folder is not None or fsdp.sharded(method):
        from omma.train import sharded_checkpoint

    if saved.folder is not None:
        sharded_checkpoint.load(saved.folder, method, optimizer)
    elif fsdp.sharded(method):
        sharded_checkpoint.scatter(saved.method, saved.optimizer, method, optimizer)
    else:
        method.load_state_dict(saved.method)
        optimizer.load_state_dict(saved.optimizer)
