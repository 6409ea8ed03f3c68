"""Checkpoints: whole state, written atomically, the last two kept; a file, or a folder of parts."""

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
    """What a checkpoint holds; of a folder, method and optimizer stay there until they are put in place."""

    method: dict[str, Any]
    optimizer: dict[str, Any]
    step: int
    total: int
    elapsed: float  # seconds of all sittings so far
    notes: dict[str, Any]  # small things of the caller's: numbers, strings, lists
    parts: Path | None = None  # the folder


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
    """Write `step-N.pt` under another name, flush it to the disk, then rename; older ones but two go.

    A network that is spread over processes becomes a folder `step-N` of their parts: then all of them must
    call, and process 0's numbers and notes count. Otherwise one process calls.
    """
    facts = {"step": step, "total": total, "elapsed": elapsed, "notes": notes}
    if fsdp.sharded(method):
        path = folder / f"step-{step:09d}"
        if dist.broadcast(path.exists()):  # resumed there and stopped again, before anything moved
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
    """Clear away what is left of a run that was killed as it saved."""
    if dist.rank() == 0:
        for left in folder.glob(".*.partial"):
            _remove(left)


def _prune(folder: Path) -> None:
    """Keep the newest; a folder loses its name first, so that half of one is never taken for a checkpoint."""
    if dist.rank() == 0:
        for old in found(folder)[:-KEPT]:
            _remove(old.rename(old.with_name(f".{old.name}.partial")) if old.is_dir() else old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def found(folder: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    return sorted((*folder.glob("step-*.pt"), *folder.glob("step-" + "[0-9]" * 9)), key=lambda p: p.stem)


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint that can be read, and a line for each newer one that cannot.

    Files are read with `weights_only`, so they cannot run code.
    """
    damaged = []
    for path in reversed(found(folder)):
        try:
            if path.is_dir():
                from omma.train import sharded_checkpoint

                return Saved({}, {}, **sharded_checkpoint.facts(path), parts=path), damaged
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
            damaged.append(f"{path.name} cannot be read ({type(error).__name__}) and is passed over")
    return None, damaged


def put(saved: Saved, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give network and optimizer their state, whichever of the three is spread over processes.

    All processes must call. Raises ValueError for a folder that turns out to be damaged.
    """
    if saved.parts is not None or fsdp.sharded(method):
        from omma.train import sharded_checkpoint

    if saved.parts is not None:
        sharded_checkpoint.load(saved.parts, method, optimizer)
    elif fsdp.sharded(method):
        sharded_checkpoint.divide(saved.method, saved.optimizer, method, optimizer)
    else:
        method.load_state_dict(saved.method)
        optimizer.load_state_dict(saved.optimizer)
