"""An endless, resumable stream of crops: the same batches whatever the workers, processes and restarts.

Position p of the stream is image order_e[p mod n] of epoch e = p // n, and step s holds positions s batch to
(s + 1) batch - 1. Nothing else is state, so a run resumes by naming its step. Images in shards (a collection
that has `blocks`, data/sources/collection.py) are visited a few shards at a time, which are fetched ahead.
"""

import atexit
import os
import signal
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Num
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from omma.core.protocols import BadImage, Crop, Images, Key
from omma.core.random import epoch_order, local_order
from omma.data.batches import augment, gpu_jpeg
from omma.data.batches.skip_bad import Part, Reader

MAX_SIDE = 96  # pixels: larger images cost more to cut by dense matrices than to decode again
MAX_BYTES = 2 << 30  # and at most a quarter of the machine's memory
WINDOW = 4  # shards whose images are shuffled together
_PART = 32  # images a worker hands over at a time: bounded memory, and several workers share a batch


class Loaded(NamedTuple):
    """One step's share of this process."""

    crops: tuple[Num[Tensor, "b v c s s"], ...]  # raw values, for `views.augment`
    key: Key  # of the positions of the stream: a replacement keeps the key of the image that it replaces
    read: Int64[np.ndarray, "b"]  # indices of the images whose pixels these are


# ---------------------------------------------------------------- which images
def keys(
    n: int,
    batch: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    blocks: Int64[np.ndarray, "n"] | None = None,
) -> Iterator[Key]:
    """The stream without pictures: for each step, epoch and index of this process's share of the batch."""
    if n < 1:
        raise ValueError("there is no image to learn from")
    if batch % world:
        raise ValueError(f"batch={batch}: must be a multiple of the {world} processes")
    share = batch // world
    orders: dict[int, np.ndarray] = {}

    def order(epoch: int) -> np.ndarray:
        if blocks is None:
            return epoch_order(seed, epoch, n)
        return local_order(seed, epoch, blocks, WINDOW)

    step = start_step
    while True:
        first = step * batch + rank * share
        epoch, place = np.divmod(np.arange(first, first + share, dtype=np.int64), n)
        wanted = np.unique(epoch).tolist()
        orders = {e: orders[e] if e in orders else order(e) for e in wanted}
        index = np.empty(share, dtype=np.int64)
        for e in wanted:
            index[epoch == e] = orders[e][place[epoch == e]]
        yield Key(seed, epoch, index)
        step += 1


def fetched(
    order: Iterator[Key], blocks: Int64[np.ndarray, "n"], fetch: Callable[[int], None]
) -> Iterator[Key]:
    """The same keys, each once its images' shards are here; those of two windows are fetched ahead."""
    most = min(2 * WINDOW, len(np.unique(blocks)))
    ahead: deque[tuple[Key, list[int]]] = deque()
    uses: Counter[int] = Counter()  # keys ahead that need a shard
    coming: dict[int, Future[None]] = {}
    pool = ThreadPoolExecutor(WINDOW)
    try:
        while True:
            while len(uses) < most:
                key = next(order)
                needed = np.unique(blocks[key.index]).tolist()
                ahead.append((key, needed))
                uses.update(needed)
                for block in needed:
                    if block not in coming:
                        coming[block] = pool.submit(fetch, block)
            key, needed = ahead.popleft()
            for block in needed:
                coming[block].result()
            yield key
            uses.subtract(needed)
            for block in needed:
                if not uses[block]:
                    del uses[block], coming[block]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# ---------------------------------------------------------------- worker processes
class _Cutter(Dataset):
    """What a worker does with the key of one part: read and cut."""

    def __init__(self, images: Images, plan: tuple[Crop, ...]) -> None:
        self.plan = plan
        self.reader = Reader(images, partial(images.read, at_least=augment.at_least(plan)))

    def __getitem__(self, key: Key) -> Part:
        read = [self.reader.read(int(i)) for i in key.index]
        crops = augment.cut([image for image, _, _ in read], self.plan, key)
        bad = {i: self.reader.bad[i] for _, _, passed in read for i in passed}
        return Part(crops, key, np.array([i for _, i, _ in read]), bad)


def _start_worker(worker: int) -> None:
    # The parent decides when to stop: a Ctrl-C or a SIGTERM to the whole process group must not kill workers
    # while the parent still finishes its step and saves. They leave with it (PyTorch's watchdog), `kill -9`
    # included.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


def _same(part: Any) -> Any:
    """In place of PyTorch's collation."""
    return part


class _Keys:
    """The parts' keys, as the sampler that DataLoader wants: it makes the numbers in the main process."""

    def __init__(self, keys: Iterator[Key]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[Key]:
        for key in self.keys:
            for start in range(0, len(key.index), _PART):
                part = slice(start, start + _PART)
                yield Key(key.seed, key.epoch[part], key.index[part])


# ---------------------------------------------------------------- what fits into memory
def memory_bytes() -> int:
    """Memory of this machine or container. Not what is free of it, so that a restart decides alike."""
    sizes = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(sizes, default=4 << 30)


def fits_in_memory(images: Images) -> bool:
    """Are the images equally large (a few are looked at), small, and small enough together?"""
    reader = Reader(images, images.read)
    n = len(images)
    some = [reader.read(int(i))[0] for i in np.linspace(0, n - 1, min(n, 8)).astype(int)]
    if len({image.shape for image in some}) > 1 or max(some[0].shape[:2]) > MAX_SIDE:
        return False
    return n * some[0].nbytes <= min(MAX_BYTES, memory_bytes() // 4)


@dataclass
class _Decoded:
    images: Tensor  # [n, c, h, w]
    read: np.ndarray  # for each index the one whose pixels stand there
    bad: dict[int, str]


def _decode_all(images: Images) -> _Decoded | None:
    """Every image in one tensor, or None where they turn out not to be equally large or of one type."""
    reader = Reader(images, images.read)
    n = len(images)
    first = reader.read(0)[0]
    whole = np.empty((n, first.shape[2], *first.shape[:2]), dtype=first.dtype)
    read = np.arange(n)

    def load(i: int) -> bool:
        try:
            image = images.read(i)
        except BadImage as error:
            reader.bad[i] = str(error)
            return True
        if image.shape != first.shape or image.dtype != first.dtype:
            return False
        whole[i] = image.transpose(2, 0, 1)
        return True

    # pieces of moderate size, so that a late surprise doesn't wait for a million futures
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, n, 4096):
            if not all(pool.map(load, range(start, min(start + 4096, n)), chunksize=1)):
                return None
    for i in reader.bad:
        read[i] = reader.read(i)[1]
        whole[i] = whole[read[i]]
    return _Decoded(torch.from_numpy(whole), read, reader.bad)


def auto_workers(in_memory: bool, cores: int | None = None, processes: int = 1) -> int:
    """Workers for each training process.

    None where images are in memory. Otherwise one for each core that this process may count as its own, at
    least 2 and at most 16: decoding waits for files, so that on two cores two workers beside the training
    process measure better than one.
    """
    if in_memory:
        return 0
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(2, cores // processes))


# ---------------------------------------------------------------- the stream
class _Met:
    """The bad images met, shared by a stream and the generator that feeds it."""

    def __init__(self) -> None:
        self.all: dict[int, str] = {}
        self.fresh: list[tuple[int, str]] = []

    def note(self, bad: dict[int, str]) -> None:
        for i, reason in bad.items():
            if i not in self.all:
                self.all[i] = reason
                self.fresh.append((i, reason))


class Stream:
    """Iterate to get `Loaded`, one a step; `close()`, or leaving a `with` block, ends the workers."""

    def __init__(self, steps: Iterator[Loaded], met: _Met, in_memory: bool, workers: int) -> None:
        self.in_memory = in_memory
        self.workers = workers
        self.waited = 0.0  # seconds that the consumer spent in `next`, in all
        self._steps, self._met = steps, met

    def __iter__(self) -> Iterator[Loaded]:
        return self

    def __next__(self) -> Loaded:
        start = time.perf_counter()
        try:
            return next(self._steps)
        finally:
            self.waited += time.perf_counter() - start

    @property
    def bad(self) -> dict[int, str]:
        """Index and reason of every bad image met so far."""
        return self._met.all

    def new_bad(self) -> list[tuple[int, str]]:
        """(index, reason) of the bad images met since this was last asked."""
        fresh, self._met.fresh = self._met.fresh, []
        return fresh

    def close(self) -> None:
        """End the workers; the stream is then over."""
        self._steps.close()  # type: ignore[attr-defined]  # a generator
        self._steps = iter(())

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stream(
    images: Images,
    plan: Sequence[Crop],
    batch: int,
    seed: int,
    *,
    start_step: int = 0,
    workers: int | None = None,
    in_memory: bool | None = None,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    decode: gpu_jpeg.Decode | None = None,
    start_method: str | None = None,
) -> Stream:
    """Crops of the plan for step `start_step` and all that follow, as process `rank` of `world` gets them.

    Small equally large images (`fits_in_memory`) are decoded once and cut in batches on the device; others
    are decoded and cut by worker processes (`workers`; 0: in this process; None: `auto_workers`), which start
    with the first `next`; where `decode` is given, they read files, and it decodes JPEGs on the device, where
    they are cut (data/batches/gpu_jpeg.py). A bad image is replaced by the next good one, index + 1 and so
    on, and listed in `Stream.bad`; ValueError where none is good.

    `batch` is that of all processes together. `in_memory` and `start_method` (of processes; by default fork
    where there is one, so that scripts need no `__main__` guard) are for those who know better.
    """
    plan, device, met = tuple(plan), torch.device(device), _Met()
    if not plan:
        raise ValueError("the plan holds no crop")
    blocks = getattr(images, "blocks", None)
    order = keys(len(images), batch, seed, start_step, rank, world, blocks)
    decoded = None
    if fits_in_memory(images) if in_memory is None else in_memory:
        decoded = _decode_all(images)
        if decoded is None and in_memory:
            raise ValueError("in_memory=True: the images are not all of one size and type; leave it out")
    if decoded is not None:
        met.note(decoded.bad)
        return Stream(_from_memory(decoded, plan, order, device), met, True, 0)
    if blocks is not None:
        order = fetched(order, blocks, images.fetch)  # type: ignore[attr-defined]  # what has blocks fetches them
    workers = auto_workers(False, processes=world) if workers is None else workers
    steps = _from_workers(images, plan, order, device, met, workers, batch // world, start_method, decode)
    return Stream(steps, met, False, workers)


def _from_memory(
    decoded: _Decoded,
    plan: tuple[Crop, ...],
    order: Iterator[Key],
    device: torch.device,
) -> Iterator[Loaded]:
    images = decoded.images.to(device)
    for key in order:
        chosen = images.index_select(0, torch.from_numpy(key.index).to(device))
        yield Loaded(augment.cut_batch(chosen, plan, key), key, decoded.read[key.index])


def _from_workers(
    images: Images,
    plan: tuple[Crop, ...],
    order: Iterator[Key],
    device: torch.device,
    met: _Met,
    workers: int,
    share: int,
    start_method: str | None,
    decode: gpu_jpeg.Decode | None,
) -> Iterator[Loaded]:
    parts = -(-share // _PART)
    work = _Cutter(images, plan) if decode is None else gpu_jpeg.Opener(images, augment.at_least(plan))
    source, end = _processes(work, order, workers, parts, start_method)
    if decode is not None:
        source = map(gpu_jpeg.OnDevice(images, plan, device, decode), source)
    try:
        while True:
            got = [next(source) for _ in range(parts)]
            for part in got:
                met.note(part.bad)
            key = Key(
                got[0].key.seed,
                np.concatenate([part.key.epoch for part in got]),
                np.concatenate([part.key.index for part in got]),
            )
            read = np.concatenate([part.read for part in got])
            crops = tuple(_join([part.crops[i] for part in got], device) for i in range(len(plan)))
            yield Loaded(crops, key, read)
    finally:
        end()


def _processes(
    work: Dataset, order: Iterator[Key], workers: int, parts: int, start_method: str | None
) -> tuple[Iterator[Any], Callable[[], None]]:
    """Parts in order from worker processes, or this one where there are none, and what ends these."""
    if not workers:
        return (work[key] for key in _Keys(order)), lambda: None
    if start_method is None and "fork" in torch.multiprocessing.get_all_start_methods():
        start_method = "fork"
    with warnings.catch_warnings():  # "more workers than cores": known and meant
        warnings.simplefilter("ignore")
        source = iter(
            DataLoader(
                work,
                batch_size=None,
                sampler=_Keys(order),  # type: ignore[arg-type]  # any iterable will do
                num_workers=workers,
                prefetch_factor=max(2, -(-2 * parts // workers)),  # two batches ahead
                collate_fn=_same,  # type: ignore[arg-type]
                worker_init_fn=_start_worker,
                multiprocessing_context=start_method,
                generator=torch.Generator(),  # or it would draw from the global one, by the number of workers
            )
        )

    def end() -> None:
        atexit.unregister(end)
        source._shutdown_workers()  # type: ignore[attr-defined]  # asks them, and waits for 5 seconds
        for process in source._workers:  # type: ignore[attr-defined]
            if process.is_alive():  # stuck in a read
                process.kill()

    # Before multiprocessing's own exit handler, which would wait for ever for those who ignore SIGTERM.
    atexit.register(end)
    return source, end


def _join(pieces: list[Tensor], device: torch.device) -> Tensor:
    whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # uint8 and float32 parts become float32
    if device.type == "cuda" and whole.device.type == "cpu":
        return whole.pin_memory().to(device, non_blocking=True)
    return whole.to(device)
