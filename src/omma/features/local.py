"""Embedding by this process and those torchrun started with it: each writes a share of the shards."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from omma.core import device as devices
from omma.core import dist, launcher
from omma.core.protocols import Backbone, Preprocess
from omma.features.extract import prepare, stream
from omma.features.table import ShardedTable


@dataclass(frozen=True)
class LocalEngine:
    """This process among those of its group."""

    device: torch.device
    precision: torch.dtype

    @property
    def processes(self) -> int:
        return dist.world_size()

    def share(self, numbers: Sequence[int]) -> list[int]:
        """Shards that this process writes: neighbours, whose images are often in one archive."""
        return np.array_split(np.array(numbers, int), dist.world_size())[dist.rank()].tolist()

    def fill(
        self,
        table: ShardedTable,
        numbers: Sequence[int],
        encoder: Backbone,
        preprocess: Preprocess,
        batch: int,
    ) -> Iterator[int]:
        """Write these shards; yields the number of images of every batch."""
        network = prepare(encoder, self.device, self.precision)
        threads = max(1, min(16, devices.cores() // launcher.ranks().local_world_size))
        embed = functools.partial(
            stream, network, preprocess=preprocess, batch=batch, threads=threads, whole=True
        )
        return table.fill(numbers, embed)


def local_engine(device: str, precision: str) -> LocalEngine:
    """On this process' own device; "auto" precision is measured by process 0."""
    chosen = devices.pick_device(device)
    return LocalEngine(chosen, dist.broadcast(devices.pick_precision(precision, chosen)))
