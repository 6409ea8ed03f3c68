"""Processes that train together: their group, what they agree on, collectives; one alone needs none of it."""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from omma.core import launcher
from omma.core.errors import AlreadyReported

PATIENCE = timedelta(hours=1)  # how long one waits for another, which may be looking through the images
LOST = (
    "the connection to another process was lost: the same command resumes from what was saved last, and "
    "`torchrun --max-restarts N` does so by itself"
)

T = TypeVar("T")
_lanes: dict[dist.ProcessGroup, dist.ProcessGroup] = {}
_groups = itertools.count()  # joined by this process, and by the others alike
_alone = False


# ---------------------------------------------------------------- the group
@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the group of all processes that torchrun started; do nothing alone or in a group already.

    CPU tensors go through gloo, CUDA tensors through NCCL from the GPU of this process' number. An error that
    another process has reported, or that only follows from another's end, is raised as `AlreadyReported`, so
    that the same line is printed once.
    """
    here = launcher.ranks()
    if here.world_size == 1 or dist.is_initialized():
        yield
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if here.local_rank < gpus:
        torch.cuda.set_device(here.local_rank)
    store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    # A later group must not find what an earlier one has left there, nor one that was started anew addresses
    # of the dead. Agents of several machines count restarts each for itself, so there it says nothing.
    attempt = here.restarts if here.local_world_size == here.world_size else 0
    store = dist.PrefixStore(f"omma/{attempt}/{next(_groups)}", store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank, world_size=world, timeout=PATIENCE
    )
    try:
        yield
    except (ValueError, OSError) as error:
        if _said(store, _whole(error)):
            raise AlreadyReported(str(error)) from error
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        if _said(store, LOST, echo=True):
            raise AlreadyReported(LOST) from error
        raise ValueError(LOST) from error
    else:
        dist.destroy_process_group()  # after an error others may never come to the goodbye


def _whole(error: Exception) -> str:
    """In one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _said(store: dist.Store, text: str, echo: bool = False) -> bool:
    """Has a process said this already, or, of an echo, anything? If not, this one is going to."""
    key = "said/" + hashlib.sha256(text.encode()).hexdigest()
    try:
        if echo and store.add("said", 0) > 0:
            return True
        store.add("said", 1)
        return store.add(key, 1) > 1
    except RuntimeError:  # the store was another process', which is gone
        return False


def is_distributed() -> bool:
    """Is there a process group of more than one? Not `on_this_process`."""
    return not _alone and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextlib.contextmanager
def on_this_process() -> Iterator[None]:
    """This process computes as if there were no other: it may fail without leaving them waiting.

    The same for all threads, of which the backward pass has some. Networks that are spread over processes
    exchange their parts all the same.
    """
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def side_group() -> dist.ProcessGroup:
    """The same processes with connections of their own.

    For messages that one process may send before and another after something else, such as the statistics of
    a batch norm in the backward pass. All must ask for it at the same time, the first time.
    """
    world = dist.group.WORLD
    assert world is not None
    if world not in _lanes:
        _lanes.clear()
        _lanes[world] = cast(dist.ProcessGroup, dist.new_group(timeout=PATIENCE))
    return _lanes[world]


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


# ---------------------------------------------------------------- what they agree on
def broadcast(value: T) -> T:
    """Process 0's value, on all: a small object that can be pickled."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Every process' value, in order of rank, on all."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def sum_floats(values: Sequence[float]) -> list[float]:
    """Sums over processes of numbers that lie on the host, in one collective that no GPU waits for."""
    if not is_distributed():
        return list(values)
    together = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(together)
    return together.tolist()


def barrier() -> None:
    """Until all are here."""
    sum_floats([0.0])


def require_same(what: str, value: str) -> None:
    """Raise ValueError on all processes if they don't have the same."""
    if len({*gather_objects(value)}) > 1:
        raise ValueError(
            f"{what} differ between processes: all machines must see the same files under the same names"
        )


@contextlib.contextmanager
def propagate_errors() -> Iterator[None]:
    """What a process may fail in alone: an error of one is an error of all, so that none waits in vain.

    The processes do nothing else together inside.
    """
    error: ValueError | OSError | None = None
    try:
        yield
    except (ValueError, OSError) as met:
        error = met
    found = [text for text in gather_objects(None if error is None else _whole(error)) if text is not None]
    if error is not None:
        raise error
    if found:
        raise ValueError(found[0])


@contextlib.contextmanager
def sequentially() -> Iterator[None]:
    """`propagate_errors`, with the first process of each machine before the others, which find its caches."""
    first = launcher.ranks().local_rank == 0
    with propagate_errors():
        if not first:
            barrier()
        try:
            yield
        finally:
            if first:
                barrier()
