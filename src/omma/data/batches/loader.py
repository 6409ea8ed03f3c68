"""An endless, resumable stream of crops: the same batches whatever the workers, processes and restarts.

The step's number decides which images it holds (data/batches/order.py), and nothing else is state, so a run
resumes by naming its step.
"""

import atexit
import logging
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from omma.core.device import cores, to_device
from omma.core.errors import line
from omma.core.protocols import Crop, Images, Key
from omma.data.batches import augment, gpu_jpeg, transport
from omma.data.batches.frames import Sample, Sampler, samples
from omma.data.batches.in_memory import Decoded, decode_all, fits_in_memory
from omma.data.batches.order import fetched, keys
from omma.data.batches.remembered import Remembered, room
from omma.data.batches.skip_bad import RawCrops, Reader
from omma.data.sources.values import read_in

log = logging.getLogger(__name__)

_CHUNK = 32  # images a worker hands over at a time: bounded memory, and several workers share a batch


def auto_workers(processes: int = 1) -> int:
    """Workers for each of so many training processes: one per core of its own, at least 2 and at most 16.

    Decoding waits for files, so on two cores two workers beside the training process are faster than one.
    """
    return min(16, max(2, cores() // processes))


class Stream:
    """Iterate to get `RawCrops`, one per step; `close()`, or leaving a `with` block, ends the workers."""

    def __init__(self, steps: Iterator[RawCrops], in_memory: bool, workers: int) -> None:
        self.in_memory = in_memory
        self.workers = workers
        self.waited = 0.0  # seconds that the consumer spent in `next`, in all
        self.bad: dict[int, str] = {}  # index and reason of every bad image met so far
        self._new_bad: list[tuple[int, str]] = []
        self._steps = steps

    def __iter__(self) -> Iterator[RawCrops]:
        return self

    def __next__(self) -> RawCrops:
        start = time.perf_counter()
        try:
            step = next(self._steps)
        finally:
            self.waited += time.perf_counter() - start
        for i, reason in step.bad.items():
            if i not in self.bad:
                self.bad[i] = reason
                self._new_bad.append((i, reason))
        return step

    def new_bad(self) -> list[tuple[int, str]]:
        """(index, reason) of the bad images met since the last call."""
        new, self._new_bad = self._new_bad, []
        return new

    def close(self) -> None:
        """End the workers and the stream."""
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
    full_scale: float | None = None,
    balance: np.ndarray | None = None,
    start_method: str | None = None,
    period: int = 0,
    frames: Sampler | None = None,
) -> Stream:
    """Crops of the plan for step `start_step` and all that follow, as process `rank` of `world` gets them.

    Small equally large images (`fits_in_memory`) are decoded once and cut in batches on the device; others
    are decoded and cut by worker processes (`workers`; 0: in this process; None: `auto_workers`), which start
    with the first `next`. With `decode`, workers read files only, and `decode` decodes JPEGs on the device,
    where they are cut (data/batches/gpu_jpeg.py). A bad image is replaced by the next good one, index + 1 and
    so on, and listed in `Stream.bad`; ValueError where none is good.

    batch: of all processes together. full_scale: white in the crops' values, to which each image is scaled by
    its own type; None: values as they are (data/sources/values.py). balance: labels
    or label sets of the images, to draw each class equally often (not from shards). in_memory, start_method
    (of processes; by default fork where there is one that works, on Linux, so that scripts need no `__main__`
    guard): override what is chosen here. period: see `order.keys`. frames: draws the images that make a
    sample, if it is not one alone; the plan then comes from `frames.plan`.
    """
    plan, device = tuple(plan), torch.device(device)
    if not plan:
        raise ValueError("the plan holds no crop")
    blocks = getattr(images, "blocks", None)
    order = samples(keys(len(images), batch, seed, start_step, rank, world, blocks, balance, period), frames)
    decoded = None
    if fits_in_memory(images) if in_memory is None else in_memory:
        decoded = decode_all(images, full_scale)
        if decoded is None and in_memory:
            raise ValueError("in_memory=True: the images are not all of one size and type; leave it out")
    if decoded is not None:
        return Stream(_from_memory(decoded, plan, order, device), True, 0)
    if blocks is not None:
        order = fetched(order, blocks, images.fetch)  # type: ignore[attr-defined]  # what has blocks fetches them
    workers = auto_workers(world) if workers is None else workers
    chunks = -(-(batch // world) // _CHUNK)
    if decode is None:
        work, finish = _Cutter(images, plan, full_scale, room() // world), None
    else:
        work = gpu_jpeg.Opener(images, augment.at_least(plan), full_scale)
        finish = gpu_jpeg.OnDevice(images, plan, device, decode, full_scale)
    start = partial(_processes, work, order, workers, chunks, start_method)
    return Stream(_from_workers(start, finish, chunks, device), False, workers)


def _from_memory(
    decoded: Decoded,
    plan: tuple[Crop, ...],
    order: Iterator[Sample],
    device: torch.device,
) -> Iterator[RawCrops]:
    pixels, bad = decoded.pixels.to(device), decoded.bad
    for key, rows in order:
        rows = decoded.good(rows)
        chosen = pixels.index_select(0, torch.from_numpy(rows.ravel()).to(device))
        yield _crops(augment.cut_batch(chosen, plan, key), key, decoded.read[rows], bad)
        bad = {}  # reported once


def _from_workers(
    start: Callable[[], tuple[Iterator[Any], Callable[[], None]]],
    finish: Callable[[Any], RawCrops] | None,
    chunks: int,
    device: torch.device,
) -> Iterator[RawCrops]:
    """Steps of so many chunks each, on the device.

    start: starts the workers, with the first `next`; their chunks, and what ends them. finish: what this
    process has to do with a worker's chunk.
    """
    source, end = start()
    if finish is not None:
        source = map(finish, source)
    try:
        while True:
            got = [next(source) for _ in range(chunks)]
            key = Key(
                got[0].key.seed,
                np.concatenate([chunk.key.epoch for chunk in got]),
                np.concatenate([chunk.key.index for chunk in got]),
            )
            crops = tuple(_join(each, device) for each in zip(*(chunk.crops for chunk in got), strict=True))
            read = np.concatenate([chunk.read for chunk in got])
            yield _crops(crops, key, read, {i: why for chunk in got for i, why in chunk.bad.items()})
    finally:
        end()


def _crops(
    crops: tuple[Tensor, ...], key: Key, read: Int64[np.ndarray, "b f"], bad: dict[int, str]
) -> RawCrops:
    """A step's crops; of samples of one image, which was read is [b]."""
    return RawCrops(crops, key, read[:, 0] if read.shape[1] == 1 else read, bad)


def _join(chunks: tuple[Tensor, ...], device: torch.device) -> Tensor:
    whole = chunks[0] if len(chunks) == 1 else torch.cat(chunks)  # uint8 and float32 chunks become float32
    if device.type == "cuda" and whole.device.type == "cpu":
        whole = whole.pin_memory()
    return to_device(whole, device)


# ---------------------------------------------------------------- worker processes
class _Cutter(Dataset):
    """What a worker does with one chunk of samples: read and cut."""

    def __init__(
        self, images: Images, plan: tuple[Crop, ...], full_scale: float | None, remember: int
    ) -> None:
        self.plan = plan
        read = partial(read_in, images, full_scale, at_least=augment.at_least(plan))
        if getattr(images, "encoded", False) and sys.platform == "linux":  # where workers are forked
            read = Remembered(read, len(images), remember)
        self.reader = Reader(images, read)

    def __getitem__(self, samples: Sample) -> RawCrops:
        images, read, bad = self.reader.read_all(samples.rows)
        return RawCrops(augment.cut(images, self.plan, samples.key), samples.key, read, bad)


def _start_worker(worker: int) -> None:
    # The parent decides when to stop: a Ctrl-C or a SIGTERM to the whole process group must not kill workers
    # while the parent still finishes its step and saves. They leave with it (PyTorch's watchdog), `kill -9`
    # included.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)


def _unchanged(chunk: Any) -> Any:
    """In place of PyTorch's collation."""
    return chunk


class _Chunks:
    """The chunks' samples, as the sampler that DataLoader needs: it draws them in the main process."""

    def __init__(self, order: Iterator[Sample]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[Sample]:
        for key, rows in self.order:
            for start in range(0, len(rows), _CHUNK):
                at = slice(start, start + _CHUNK)
                yield Sample(Key(key.seed, key.epoch[at], key.index[at]), rows[at])


def _probe(start_method: str | None, workers: int) -> None:
    """Raise OSError where /dev/shm has no room for the workers' queues; DataLoader would fail half-made."""
    context = multiprocessing.get_context(start_method)
    _ = [context.Queue() for _ in range(workers + 1)], context.Event()


def _processes(
    work: Dataset, order: Iterator[Sample], workers: int, chunks: int, start_method: str | None
) -> tuple[Iterator[Any], Callable[[], None]]:
    """Chunks in order, from worker processes or from this one (workers=0), and a function that ends them."""
    if not workers:
        return (work[chunk] for chunk in _Chunks(order)), lambda: None
    if (
        start_method is None and sys.platform == "linux"
    ):  # elsewhere forked processes crash in system libraries
        start_method = "fork"
    try:
        _probe(start_method, workers)
        with warnings.catch_warnings():  # "more workers than cores": intended
            warnings.simplefilter("ignore")
            source = iter(
                DataLoader(
                    transport.Sender(work),
                    batch_size=None,
                    sampler=_Chunks(order),  # type: ignore[arg-type]  # any iterable will do
                    num_workers=workers,
                    prefetch_factor=max(2, -(-2 * chunks // workers)),  # two batches ahead
                    collate_fn=_unchanged,  # type: ignore[arg-type]
                    worker_init_fn=_start_worker,
                    multiprocessing_context=start_method,
                    generator=torch.Generator(),  # or the global one is drawn from, by the workers' number
                )
            )
    except OSError as error:  # no semaphores without /dev/shm, no further process
        log.warning(
            "no process can be started to load data (%s), so this one does, which takes longer", line(error)
        )
        return (work[chunk] for chunk in _Chunks(order)), lambda: None

    def end() -> None:
        atexit.unregister(end)
        source._shutdown_workers()  # type: ignore[attr-defined]  # asks them, and waits for 5 seconds
        for process in source._workers:  # type: ignore[attr-defined]
            if process.is_alive():  # stuck in a read
                process.kill()

    # Before multiprocessing's own exit handler, which would wait for ever for those who ignore SIGTERM.
    atexit.register(end)
    return transport.received(source), end
