"""Embedding by Ray Data: a pool of actors, each with a copy of the network, that write a table's shards.

Ray places, monitors and restarts the actors; all its machines must see the folder that they write to.
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
from omma.core.explain import translated
from omma.core.protocols import Backbone, Preprocess
from omma.features.extract import prepare, stream
from omma.features.table import ShardedTable


@dataclass(frozen=True)
class RayEngine:
    """Actors of a cluster: one a GPU or, without GPUs, one a core."""

    processes: int
    gpus: int  # an actor
    threads: int  # for decoding, an actor
    device: torch.device
    precision: torch.dtype

    def share(self, numbers: Sequence[int]) -> list[int]:
        """Shards that this call has written: all."""
        return list(numbers)

    def fill(
        self,
        table: ShardedTable,
        numbers: Sequence[int],
        encoder: Backbone,
        preprocess: Preprocess,
        batch: int,
    ) -> Iterator[int]:
        """Have these shards written, in any order; yields the number of images of each."""
        if not numbers:
            return
        ray, data = need("ray", "ray"), need("ray.data", "ray")
        data.DataContext.get_current().enable_progress_bars = False
        shared = ray.put(table), ray.put(encoder)  # stored once instead of sent to each actor
        tasks = data.from_items([{"number": n} for n in numbers], override_num_blocks=len(numbers))
        done = tasks.map_batches(
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
    """Keeps the prepared network and writes one shard a call."""

    def __init__(
        self, table: Any, encoder: Any, preprocess: Preprocess, engine: RayEngine, batch: int
    ) -> None:
        ray = need("ray", "ray")
        self.table: ShardedTable = ray.get(table)
        network = prepare(ray.get(encoder), engine.device, engine.precision)
        self.embed = functools.partial(
            stream, network, preprocess=preprocess, batch=batch, threads=engine.threads, whole=True
        )

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """User errors are returned, because Ray would bury their messages in its own."""
        try:
            with translated():
                return {"images": [sum(self.table.fill(rows["number"].tolist(), self.embed))], "error": [""]}
        except (ValueError, OSError) as error:
            return {"images": [0], "error": [line(error)]}


@contextmanager
def ray_engine(device: str, precision: str) -> Iterator[RayEngine]:
    """All GPUs, or else all cores, of the caller's cluster, of RAY_ADDRESS, or of one started temporarily.

    "auto" is resolved on a machine where actors will run. A cluster started here sends no usage statistics.
    Raises ValueError if Ray is not installed.
    """
    ray = need("ray", "ray")
    need("ray.data", "ray")
    started_here = not ray.is_initialized()
    if started_here:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        resources = ray.cluster_resources()
        cores, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
        gpus_each = 1 if gpus and device != "cpu" else 0
        processes = gpus if gpus_each else cores
        try:
            chosen, dtype = ray.get(ray.remote(num_gpus=gpus_each)(_choose).remote(device, precision))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        yield RayEngine(processes, gpus_each, max(1, min(16, cores // processes)), chosen, dtype)
    finally:
        if started_here:
            ray.shutdown()


def _choose(device: str, precision: str) -> tuple[torch.device, torch.dtype]:
    chosen = devices.pick_device(device)
    return chosen, devices.pick_precision(precision, chosen)
