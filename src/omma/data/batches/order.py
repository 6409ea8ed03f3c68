"""Which images each step of the endless stream holds: a pure function of the seed and the step.

Position p of the stream is image order_e[p mod n] of epoch e = p // n, and step s holds positions s batch to
(s + 1) batch - 1. Images in shards (a collection that has `blocks`, data/sources/collection.py) are visited a
few shards at a time, which are fetched ahead.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Int, Int64

from omma.core.protocols import Key
from omma.core.random import epoch_order, local_order, occurrence
from omma.data.batches.balanced import balanced_order, members
from omma.data.batches.frames import Sample

WINDOW = 4  # shards whose images are shuffled together


def keys(
    n: int,
    batch: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    blocks: Int64[np.ndarray, "n"] | None = None,
    balance: Int[np.ndarray, "n *k"] | None = None,
    period: int = 0,
) -> Iterator[Key]:
    """For each step from `start_step` on, epochs and indices of this process's share of the batch.

    n: images. blocks: each image's shard. balance: labels or label sets, to draw each class equally often
    (data/batches/balanced.py); the r-th repetition of an image in an epoch then has r 2^20 added to its
    epoch, so that its views differ. period: epochs are counted modulo this, so that views repeat, while the
    order does not; 0: never. Raises ValueError unless the batch divides among `world` processes.
    """
    if n < 1:
        raise ValueError("there is no image to learn from")
    if batch % world:
        raise ValueError(f"batch={batch}: must be a multiple of the {world} processes")
    if balance is not None and blocks is not None:
        raise ValueError(
            "shards are read in their own order, so classes cannot be drawn equally often from them"
        )
    share = batch // world
    orders: dict[int, np.ndarray] = {}
    groups = None if balance is None else members(balance)

    def order(epoch: int) -> np.ndarray:
        if groups is not None:
            return balanced_order(seed, epoch, groups, n)
        if blocks is None:
            return epoch_order(seed, epoch, n)
        return local_order(seed, epoch, blocks, WINDOW)

    step = start_step
    while True:
        first = step * batch + rank * share
        which, position = np.divmod(np.arange(first, first + share, dtype=np.int64), n)
        epochs = np.unique(which).tolist()
        orders = {e: orders[e] if e in orders else order(e) for e in epochs}
        index = np.empty(share, dtype=np.int64)
        for e in epochs:
            index[which == e] = orders[e][position[which == e]]
        epoch = which % period if period else which.copy()
        if groups is not None:
            for e in epochs:
                own = which == e
                epoch[own] += occurrence(orders[e])[position[own]] << 20
        yield Key(seed, epoch, index)
        step += 1


def fetched(
    order: Iterator[Sample], blocks: Int64[np.ndarray, "n"], fetch: Callable[[int], None]
) -> Iterator[Sample]:
    """The same samples, each once its images' shards are on this machine; two windows are fetched ahead."""
    most = min(2 * WINDOW, len(np.unique(blocks)))
    ahead: deque[tuple[Sample, list[int]]] = deque()
    uses: Counter[int] = Counter()  # samples ahead that need a shard
    coming: dict[int, Future[None]] = {}
    pool = ThreadPoolExecutor(WINDOW)
    try:
        while True:
            while len(uses) < most:
                samples = next(order)
                needed = np.unique(blocks[samples.rows]).tolist()
                ahead.append((samples, needed))
                uses.update(needed)
                for block in needed:
                    if block not in coming:
                        coming[block] = pool.submit(fetch, block)
            samples, needed = ahead.popleft()
            for block in needed:
                coming[block].result()
            yield samples
            uses.subtract(needed)
            for block in needed:
                if not uses[block]:
                    del uses[block], coming[block]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
