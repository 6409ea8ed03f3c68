"""Checkpoints: whole state, written atomically, the last two kept."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omma import files

KEPT = 2


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    method: dict[str, Any]
    optimizer: dict[str, Any]
    step: int
    total: int
    elapsed: float  # seconds of all sittings so far
    notes: dict[str, Any]  # small things of the caller's: numbers, strings, lists


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
    """Write `step-N.pt` under another name, flush it to the disk, then rename; older ones but two go."""
    path = folder / f"step-{step:09d}.pt"
    for left in folder.glob(".*.partial"):  # of a run that was killed as it saved
        left.unlink(missing_ok=True)
    state = {
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "total": total,
        "elapsed": elapsed,
        "notes": notes,
    }
    with files.whole(path, lasting=True) as partial:
        torch.save(state, partial)
    for old in _all(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint that can be read, and a line for each newer one that cannot.

    Files are read with `weights_only`, so they cannot run code.
    """
    damaged = []
    for path in reversed(_all(folder)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            return Saved(**state), damaged
        except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
            damaged.append(f"{path.name} cannot be read ({type(error).__name__}) and is passed over")
    return None, damaged
