"""How chunks travel from worker processes: in shared memory, or through a pipe where that has no room.

PyTorch moves tensors to shared memory in a thread of the worker whose errors nobody hears: a full /dev/shm
(64 MB in many containers) would leave the training process waiting for ever. Here the worker itself does it.
"""

import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from omma.core.errors import exhausted, message
from omma.core.explain import WORKER

log = logging.getLogger(__name__)


class _Piped(NamedTuple):
    """A tensor that did not fit into shared memory."""

    values: np.ndarray


class _Failure(NamedTuple):
    """An error of a worker."""

    error: Exception
    trace: str


class _InWorker(Exception):
    """A worker's traceback, as the cause of its error in the training process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Sender(Dataset):
    """Does `work` in a worker process and packs what comes of it, errors included, as bytes."""

    def __init__(self, work: Dataset) -> None:
        self.work = work

    def __getitem__(self, key: Any) -> bytes:
        try:
            chunk = self.work[key]
        except Exception as error:
            return _pack_failure(error)
        try:
            return bytes(ForkingPickler.dumps(chunk))
        except (RuntimeError, OSError):  # no room, too many open files, nowhere to put a socket
            return pickle.dumps(_each_tensor(chunk, lambda tensor: _Piped(tensor.numpy())), 5)


def received(source: Iterator[bytes]) -> Iterator[Any]:
    """The chunks of workers; raises the errors that they met."""
    logged = False
    for packed in source:
        try:
            chunk = pickle.loads(packed)
        except (OSError, EOFError) as error:  # its shared memory went with the worker
            if exhausted(error):
                raise
            raise ValueError(WORKER) from error
        if isinstance(chunk, _Failure):
            raise chunk.error from _InWorker(chunk.trace)
        arrived, piped = _unpiped(chunk)
        if piped and not logged:
            logged = True
            log.warning(
                "shared memory (/dev/shm) has no room for batches, so they travel through pipes, which takes "
                "longer: enlarge it (docker --shm-size=2g), or use fewer --workers"
            )
        yield arrived


def _pack_failure(error: Exception) -> bytes:
    trace = "".join(traceback.format_exception(error))
    try:
        packed = pickle.dumps(_Failure(error, trace))
        pickle.loads(packed)
    except Exception:
        packed = pickle.dumps(_Failure(RuntimeError(f"{type(error).__name__}: {message(error)}"), trace))
    return packed


def _each_tensor(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A tuple, and tuples in it, with their tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if not isinstance(value, tuple):
        return value
    members = [_each_tensor(member, change) for member in value]
    return type(value)(*members) if hasattr(value, "_fields") else tuple(members)


def _unpiped(value: Any) -> tuple[Any, bool]:
    """The value with tensors in place of what was piped, and whether anything was."""
    if isinstance(value, _Piped):
        return torch.from_numpy(value.values), True
    if not isinstance(value, tuple):
        return value, False
    pairs = [_unpiped(member) for member in value]
    members = [member for member, _ in pairs]
    whole = type(value)(*members) if hasattr(value, "_fields") else tuple(members)
    return whole, any(piped for _, piped in pairs)
