"""Embedding by Ray Data: a pool of actors, each with the network once, that write the parts of a table.

Ray places, watches and restarts them; what they write must lie where all its machines see it.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from omma.core import device as devices
from omma.core.errors import line, need
from omma.core.protocols import Backbone, Preprocess
from omma.features.extract import passes, ready
from omma.features.table import Parts


@dataclass(frozen=True)
class Pool:
    """Actors of a cluster: one for each GPU or, without any, for each core."""

    processes: int
    gpus: int  # of each
    threads: int  # that decode, of each
    device: torch.device
    precision: torch.dtype

    def share(self, numbers: Sequence[int]) -> list[int]:
        """Parts that are written from here: all."""
        return list(numbers)

    def fill(
        self, parts: Parts, numbers: Sequence[int], encoder: Backbone, preprocess: Preprocess, batch: int
    ) -> Iterator[int]:
        """Have these parts written, in any order; yields after each how many images it was of."""
        if not numbers:
            return
        ray, data = need("ray", "ray"), need("ray.data", "ray")
        data.DataContext.get_current().enable_progress_bars = False
        shared = ray.put(parts), ray.put(encoder)  # once for all, and not in a message to each
        todo = data.from_items([{"number": n} for n in numbers], override_num_blocks=len(numbers))
        done = todo.map_batches(
            _Actor,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(self.processes, len(numbers))),
            num_gpus=self.gpus,
            fn_constructor_args=(*shared, preprocess, self, batch),
        )
        for row in done.iter_rows():
            if row["error"]:
                raise ValueError(row["error"])
            yield int(row["images"])


class _Actor:
    """Has the network ready, and writes a part a call."""

    def __init__(self, parts: Any, encoder: Any, preprocess: Preprocess, pool: Pool, batch: int) -> None:
        ray = need("ray", "ray")
        self.parts: Parts = ray.get(parts)
        network = ready(ray.get(encoder), pool.device, pool.precision)
        self.embed = functools.partial(
            passes, network, preprocess=preprocess, batch=batch, threads=pool.threads
        )

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """Errors that the user can mend are a result: Ray's would hide what they say in its own."""
        try:
            return {"images": [sum(self.parts.fill(rows["number"].tolist(), self.embed))], "error": [""]}
        except (ValueError, OSError) as error:
            return {"images": [0], "error": [line(error)]}


@contextmanager
def pool(device: str, precision: str) -> Iterator[Pool]:
    """All GPUs, else all cores, of the caller's cluster, that of RAY_ADDRESS, or one started for the while.

    "auto" is chosen where the actors will run. The cluster that is started gathers no usage statistics.
    Raises ValueError where Ray is not installed.
    """
    ray = need("ray", "ray")
    need("ray.data", "ray")
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        there = ray.cluster_resources()
        cores, gpus = max(1, int(there.get("CPU", 1))), int(there.get("GPU", 0))
        each = 1 if gpus and device != "cpu" else 0
        processes = gpus if each else cores
        try:
            where, dtype = ray.get(ray.remote(num_gpus=each)(_choose).remote(device, precision))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        yield Pool(processes, each, max(1, min(16, cores // processes)), where, dtype)
    finally:
        if ours:
            ray.shutdown()


def _choose(device: str, precision: str) -> tuple[torch.device, torch.dtype]:
    where = devices.pick_device(device)
    return where, devices.pick_precision(precision, where)
