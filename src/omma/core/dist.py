"""The process group and messages between processes; with one process every function is trivial."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from omma.core import launcher
from omma.core.errors import AlreadyReported, message

TIMEOUT = timedelta(hours=1)  # generous, since one process may be listing millions of images
CONNECTION_LOST = (
    "the connection to another process was lost: the same command resumes from the last checkpoint, and "
    "`torchrun --max-restarts N` restarts it automatically"
)

T = TypeVar("T")
_side_groups: dict[dist.ProcessGroup, dist.ProcessGroup] = {}  # of each world group
_groups_joined = itertools.count()  # every process counts the same
_local_only = False


# ---------------------------------------------------------------- the group
@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the group of all processes that torchrun started; does nothing for one, or inside a group.

    CPU tensors use gloo; CUDA tensors use NCCL, on the GPU with this process's local rank. An error that
    another process has already reported, or that only follows from another's end, is raised as
    `AlreadyReported`, so that each message is printed once.
    """
    ranks = launcher.ranks()
    if ranks.world_size == 1 or dist.is_initialized():
        yield
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if ranks.local_rank < gpus:
        torch.cuda.set_device(ranks.local_rank)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store.set_timeout(TIMEOUT)
    # Keys of an earlier group, or addresses from before a restart, must not be visible to this group. On
    # several machines each agent counts its own restarts, so there the count cannot be part of the prefix.
    attempt = ranks.restarts if ranks.local_world_size == ranks.world_size else 0
    store = dist.PrefixStore(f"omma/{attempt}/{next(_groups_joined)}", store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        yield
    except (ValueError, OSError) as error:
        if _already_reported(store, message(error)):
            raise AlreadyReported(str(error)) from error
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        if _already_reported(store, CONNECTION_LOST, consequence=True):
            raise AlreadyReported(CONNECTION_LOST) from error
        raise ValueError(CONNECTION_LOST) from error
    else:
        dist.destroy_process_group()  # not after an error: the others may never get here


def _already_reported(store: dist.Store, text: str, consequence: bool = False) -> bool:
    """Has another process reported this message? If not, record that this process reports it.

    consequence: the error may only follow from another process's error, so any earlier report counts.
    """
    key = "reported/" + hashlib.sha256(text.encode()).hexdigest()
    try:
        if consequence and store.add("reported", 0) > 0:
            return True
        store.add("reported", 1)
        return store.add(key, 1) > 1
    except RuntimeError:  # the process that hosts the store has ended
        return False


def is_distributed() -> bool:
    """Is there a process group of more than one process? Always False within `on_this_process`."""
    return not _local_only and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextlib.contextmanager
def on_this_process() -> Iterator[None]:
    """Compute without collectives, so that an error here does not leave other processes waiting.

    Holds for all threads, including those of the backward pass. Networks sharded by FSDP still exchange their
    shards.
    """
    global _local_only
    _local_only = True
    try:
        yield
    finally:
        _local_only = False


def side_group() -> dist.ProcessGroup:
    """A second group of the same processes, with connections of its own.

    For messages whose order relative to other messages may differ between processes, such as gradient buckets
    beside a batch norm's statistics in the backward pass. The first call creates the group, so all processes
    must make it at the same point.
    """
    world = dist.group.WORLD
    assert world is not None
    if world not in _side_groups:
        _side_groups.clear()
        _side_groups[world] = cast(dist.ProcessGroup, dist.new_group(timeout=TIMEOUT))
    return _side_groups[world]


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


# ---------------------------------------------------------------- messages
def broadcast(value: T) -> T:
    """Rank 0's value, on every process: a small object that can be pickled."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """The values of all processes in order of rank, on every process."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def sum_floats(values: Sequence[float]) -> list[float]:
    """Sum each number over processes, in one collective on the CPU, so that no GPU waits."""
    if not is_distributed():
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def barrier() -> None:
    """Wait until every process has made this call."""
    sum_floats([0.0])


def require_same(what: str, value: str) -> None:
    """Raise ValueError on all processes unless `value` is the same on each; `what` names it."""
    if len({*gather_objects(value)}) > 1:
        raise ValueError(
            f"{what} differ between processes: all machines must see the same files under the same names"
        )


@contextlib.contextmanager
def propagate_errors() -> Iterator[None]:
    """Raise an error of any process on all of them, so that none waits for a process that has failed.

    The body must not contain collectives.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    messages = [m for m in gather_objects(None if error is None else message(error)) if m is not None]
    if error is not None:
        raise error
    if messages:
        raise ValueError(messages[0])


def on_first(function: Callable[[], T]) -> T:
    """What a function without collectives returns on rank 0, which alone calls it; its errors reach all."""
    with propagate_errors():
        result = function() if rank() == 0 else None
    return cast(T, broadcast(result))


@contextlib.contextmanager
def sequentially() -> Iterator[None]:
    """Run the body on local rank 0 first, then on the others, which find its caches; share errors."""
    first = launcher.ranks().local_rank == 0
    with propagate_errors():
        if not first:
            barrier()
        try:
            yield
        finally:
            if first:
                barrier()
