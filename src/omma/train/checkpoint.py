"""Checkpoints: the whole state, written atomically, the last two kept; a file, or a folder of shards."""

import errno
import pickle
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from omma.core import dist, files
from omma.core.errors import exhausted, line
from omma.train import fsdp

KEPT = 2
# what reading bytes that are not those that were written may raise
DAMAGE = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RuntimeError, MemoryError,
    NotImplementedError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


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
            files.remove(partial)


def _prune(folder: Path) -> None:
    """Keep the newest; folders are renamed before removal, so that half of one is no checkpoint."""
    if dist.rank() == 0:
        for old in paths(folder)[:-KEPT]:
            files.remove(old.rename(old.with_name(f".{old.name}.partial")) if old.is_dir() else old)


def paths(folder: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    return sorted((*folder.glob("step-*.pt"), *folder.glob("step-" + "[0-9]" * 9)), key=lambda p: p.stem)


def newest(folder: Path, together: bool = False) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint, and a message about each newer one that is damaged.

    All bytes are compared with the checksums that were written with them. Files are read with `weights_only`
    and cannot run code.
    together: all processes call, agree, and share the reading of a folder of shards.
    Raises ValueError if a checkpoint cannot be accessed, which says nothing about its content.
    """
    damaged = []
    for path in reversed(paths(folder)):
        saved, faults = None, [_Fault("", "")]
        if together:
            saved, fault = _read(path, dist.rank(), dist.world_size())
            faults = dist.gather_objects(fault)
        else:
            saved, faults[0] = _read(path, 0, 1)
        if denied := [fault.denied for fault in faults if fault.denied]:
            raise ValueError(
                f"checkpoint {path} cannot be read ({denied[0]}): make it readable, or remove it to resume "
                "from the one before"
            )
        if not (damages := [fault.damage for fault in faults if fault.damage]):
            return saved, damaged
        damaged.append(f"{path.name} is damaged ({damages[0]}) and is skipped")
    return None, damaged


class _Fault(NamedTuple):
    """What is wrong with a checkpoint; empty texts: nothing."""

    damage: str
    denied: str


def _read(path: Path, rank: int, processes: int) -> tuple[Saved | None, _Fault]:
    try:
        if path.is_dir():
            from omma.train import sharded_checkpoint

            facts = sharded_checkpoint.facts(path, rank, processes)
            return Saved({}, {}, **facts, folder=path), _Fault("", "")
        with open(path, "rb") as file:
            if (record := zipfile.ZipFile(file).testzip()) is not None:  # PyTorch does not compare these
                return None, _Fault(f"the checksum of {record} differs", "")
            file.seek(0)
            return Saved(**torch.load(file, map_location="cpu", weights_only=True)), _Fault("", "")
    except (OSError, *DAMAGE) as error:
        if exhausted(error):  # the checkpoint may be good
            return None, _Fault("", f"the machine is exhausted: {line(error)}")
        # EINVAL: damage that sends the reader to before the file's start
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EINVAL):
            return None, _Fault("", error.strerror or str(error))
        return None, _Fault(line(error), "")


def set_aside(folder: Path, step: int) -> None:
    """Rename the damaged checkpoints after `step`, where training resumes and will write them again."""
    for path in paths(folder):
        if int(path.stem.rpartition("-")[2]) > step:
            aside = path.with_name(f"damaged-{path.name}")
            files.remove(aside)
            path.rename(aside)


def restore(saved: Saved, method: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Fill network and optimizer (None: the network alone) from a checkpoint; any of them may be sharded.

    All processes must call. Raises ValueError for a folder that turns out to be damaged.
    """
    if saved.folder is not None or fsdp.sharded(method):
        from omma.train import sharded_checkpoint

    if saved.folder is not None:
        sharded_checkpoint.load(saved.folder, method, optimizer)
    elif fsdp.sharded(method):
        assert optimizer is not None
        sharded_checkpoint.scatter(saved.method, saved.optimizer, method, optimizer)
    else:
        try:
            method.load_state_dict(saved.method)
        except RuntimeError as error:  # of a method that holds something for each image, or each class
            raise ValueError(
                f"the checkpoint of step {saved.step} does not fit these images ({line(error)}): start a new "
                "run from the weights of this one (--init)"
            ) from error
        if optimizer is not None:
            optimizer.load_state_dict(saved.optimizer)
