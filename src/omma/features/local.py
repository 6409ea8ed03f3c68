"""Embedding by this process and those that torchrun started with it: each writes a share of the parts."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from omma.core import device as devices
from omma.core import dist, launcher
from omma.core.protocols import Backbone, Preprocess
from omma.features.extract import passes, ready
from omma.features.table import Parts


@dataclass(frozen=True)
class Local:
    """This process among those of its group."""

    device: torch.device
    precision: torch.dtype

    @property
    def processes(self) -> int:
        return dist.world_size()

    def share(self, numbers: Sequence[int]) -> list[int]:
        """Parts that this process writes: neighbours, which lie together in shards."""
        return np.array_split(np.array(numbers, int), dist.world_size())[dist.rank()].tolist()

    def fill(
        self, parts: Parts, numbers: Sequence[int], encoder: Backbone, preprocess: Preprocess, batch: int
    ) -> Iterator[int]:
        """Write these parts; yields after every batch how many images it was of."""
        network = ready(encoder, self.device, self.precision)
        threads = max(1, min(16, devices.cores() // launcher.ranks().local_world_size))
        embed = functools.partial(passes, network, preprocess=preprocess, batch=batch, threads=threads)
        return parts.fill(numbers, embed)


def local(device: str, precision: str) -> Local:
    """On the device of this process' number; "auto" precision as process 0 measures it."""
    where = devices.pick_device(device)
    return Local(where, dist.broadcast(devices.pick_precision(precision, where)))
