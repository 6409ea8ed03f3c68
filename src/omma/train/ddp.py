"""Gradients of several processes, averaged during the backward pass (docs/adr/0007), and their norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from omma.core import dist
from omma.core.dtensor import is_sharded

BUCKET = 25 << 20  # bytes a message: large enough for the network, small enough to start early


@torch.no_grad()
def broadcast_state(module: nn.Module) -> None:
    """Give all processes the parameters and buffers of process 0; sharded tensors stay as they are."""
    if dist.is_distributed():
        for tensor in (*module.parameters(), *module.buffers()):
            if not is_sharded(tensor):
                torch.distributed.broadcast(tensor.detach(), 0)


@dataclass
class _Bucket:
    """Gradients that are sent in one message."""

    params: list[nn.Parameter]
    flat: Tensor
    views: list[Tensor]  # each parameter's gradient in `flat`
    missing: int = 0  # gradients of the last micro-batch that have not arrived
    work: Any = None


class Gradients:
    """Means over processes of all gradients that are not sharded; a single process sends nothing.

    Gradients lie in buckets, last layers first. A bucket is sent as soon as the last micro-batch has filled
    it. The order of buckets is fixed, so all processes send in the same order although gradients arrive in
    different orders; they send at different times, so these messages have a process group of their own. A
    parameter without a gradient in any process keeps None, as in a single process.

    A step: `begin`; backward passes, with `expect_last` before the last one; `finish`; `drop_absent`.
    """

    def __init__(self, method: nn.Module, trained: Sequence[nn.Parameter], size: int = BUCKET) -> None:
        averaged = {id(p) for p in trained if not is_sharded(p)} if dist.is_distributed() else set()
        self._params = [p for p in reversed(list(method.parameters())) if id(p) in averaged]
        self._size = size
        self._group = dist.side_group() if dist.is_distributed() else None
        self._buckets: list[_Bucket] = []
        self._slots: dict[int, tuple[_Bucket, int]] = {}
        self._hooks: list[Any] = []
        self._arrived: set[int] = set()
        self._sent, self._last = 0, False

    def begin(self) -> None:
        """Start a step: make room for the gradients of all parameters that are not frozen."""
        active = [p for p in self._params if p.requires_grad]
        if [id(p) for b in self._buckets for p in b.params] != [id(p) for p in active]:
            self._allocate(active)
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.missing, bucket.work = len(bucket.params), None
            for p, view in zip(bucket.params, bucket.views, strict=True):
                p.grad = view  # autograd accumulates into it
        # hooks last one step: another loop may train these parameters later
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrive) for p in active]
        self._arrived.clear()
        self._sent, self._last = 0, False

    def _allocate(self, params: Sequence[nn.Parameter]) -> None:
        self._buckets, self._slots = [], {}
        for members in _bucketed(params, self._size):
            sizes = [p.numel() for p in members]
            flat = torch.zeros(sum(sizes), dtype=members[0].dtype, device=members[0].device)
            views = [x.view_as(p) for x, p in zip(flat.split(sizes), members, strict=True)]
            bucket = _Bucket(members, flat, views)
            self._buckets.append(bucket)
            self._slots |= {id(p): (bucket, i) for i, p in enumerate(members)}

    def add(self, p: nn.Parameter, gradient: Tensor) -> None:
        """Add the gradient of a lower-precision copy of `p`, which autograd does not accumulate into `p`."""
        slot = self._slots.get(id(p))
        if slot is not None:  # the optimizer trains this parameter
            bucket, i = slot
            bucket.views[i].add_(gradient)
            self._arrive(p)

    def expect_last(self) -> None:
        """Announce that the next backward pass is the step's last."""
        self._last = True

    def _arrive(self, p: Tensor) -> None:
        self._arrived.add(id(p))
        if self._last:
            self._slots[id(p)][0].missing -= 1
            while self._sent < len(self._buckets) and self._buckets[self._sent].missing == 0:
                self._send()

    def _send(self) -> None:
        bucket = self._buckets[self._sent]
        bucket.work = torch.distributed.all_reduce(bucket.flat, group=self._group, async_op=True)
        self._sent += 1

    def finish(self) -> list[float]:
        """Send the remaining buckets and wait for all; returns 1 a parameter with a gradient here, else 0."""
        for hook in self._hooks:
            hook.remove()
        while self._sent < len(self._buckets):
            self._send()
        for bucket in self._buckets:
            bucket.work.wait()
            bucket.flat.div_(dist.world_size())
        return [float(id(p) in self._arrived) for bucket in self._buckets for p in bucket.params]

    def drop_absent(self, present: Sequence[float]) -> None:
        """Set gradients to None where no process has one; present: sums over processes of `finish`."""
        params = [p for bucket in self._buckets for p in bucket.params]
        for p, processes in zip(params, present, strict=True):
            if not processes:
                p.grad = None


def _bucketed(params: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Parameters in order, in groups of one type and at most `size` bytes; a larger one stands alone."""
    groups: list[list[nn.Parameter]] = []
    room = 0
    for p in params:
        room -= p.numel() * p.element_size()
        if not groups or room < 0 or p.dtype != groups[-1][0].dtype:
            groups.append([])
            room = size - p.numel() * p.element_size()
        groups[-1].append(p)
    return groups
