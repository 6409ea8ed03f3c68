"""Gradients of several processes, averaged while the backward pass goes on (docs/adr/0007); their norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from omma.core import collectives, dist
from omma.core.dtensor import is_sharded, to_local

BUCKET = 25 << 20  # bytes that are sent at a time: large enough for the network, small enough to begin soon


@torch.no_grad()
def same(module: nn.Module) -> None:
    """Parameters and buffers as process 0 has them; parts that are a process' own are left alone."""
    if dist.is_distributed():
        for tensor in (*module.parameters(), *module.buffers()):
            if not is_sharded(tensor):
                torch.distributed.broadcast(tensor.detach(), 0)


@dataclass
class _Bucket:
    """Gradients that are sent together."""

    params: list[nn.Parameter]
    flat: Tensor
    views: list[Tensor]  # each parameter's gradient in `flat`
    missing: int = 0  # of the last part of the batch
    work: Any = None


class Gradients:
    """Means over processes of the gradients that are not spread; one process alone has nothing to send.

    Gradients lie in buckets, last layers first. A bucket is sent as soon as the last part of the batch has
    filled it, and buckets always in this order, which all processes have in common whatever the order is in
    which gradients arrive. When they are sent differs, so they have connections of their own. What no process
    has a gradient for keeps None, as it would on one alone.

    A step: `begin`; backward passes, `last` before the last of them; `finish`; `settle`.
    """

    def __init__(self, method: nn.Module, trained: Sequence[nn.Parameter], size: int = BUCKET) -> None:
        wanted = {id(p) for p in trained if not is_sharded(p)} if dist.is_distributed() else set()
        self._params = [p for p in reversed(list(method.parameters())) if id(p) in wanted]
        self._size = size
        self._lane = dist.side_group() if dist.is_distributed() else None
        self._buckets: list[_Bucket] = []
        self._places: dict[int, tuple[_Bucket, int]] = {}
        self._hooks: list[Any] = []
        self._found: set[int] = set()
        self._sent, self._last = 0, False

    def begin(self) -> None:
        """A step begins: room for the gradients of all parameters that are not frozen now."""
        moving = [p for p in self._params if p.requires_grad]
        if [id(p) for b in self._buckets for p in b.params] != [id(p) for p in moving]:
            self._lay_out(moving)
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.missing, bucket.work = len(bucket.params), None
            for p, view in zip(bucket.params, bucket.views, strict=True):
                p.grad = view  # autograd adds to what is there
        # for this step alone: another loop may train these parameters later
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrive) for p in moving]
        self._found.clear()
        self._sent, self._last = 0, False

    def _lay_out(self, params: list[nn.Parameter]) -> None:
        self._buckets, self._places = [], {}
        for some in _cut(params, self._size):
            flat = torch.zeros(sum(p.numel() for p in some), dtype=some[0].dtype, device=some[0].device)
            parts = flat.split([p.numel() for p in some])
            bucket = _Bucket(some, flat, [x.view_as(p) for x, p in zip(parts, some, strict=True)])
            self._buckets.append(bucket)
            self._places |= {id(p): (bucket, i) for i, p in enumerate(some)}

    def add(self, p: nn.Parameter, gradient: Tensor) -> None:
        """The gradient of a lower-precision copy of `p`, whose own autograd does not see."""
        place = self._places.get(id(p))
        if place is not None:  # of a parameter that the optimizer moves
            bucket, i = place
            bucket.views[i].add_(gradient)
            self._arrive(p)

    def last(self) -> None:
        """The backward pass that comes now is the step's last."""
        self._last = True

    def _arrive(self, p: Tensor) -> None:
        self._found.add(id(p))
        if self._last:
            self._places[id(p)][0].missing -= 1
            while self._sent < len(self._buckets) and self._buckets[self._sent].missing == 0:
                self._send()

    def _send(self) -> None:
        bucket = self._buckets[self._sent]
        bucket.work = torch.distributed.all_reduce(bucket.flat, group=self._lane, async_op=True)
        self._sent += 1

    def finish(self) -> list[float]:
        """Send what was not filled, and wait; 1 for each parameter that has a gradient here, 0 for others."""
        for hook in self._hooks:
            hook.remove()
        while self._sent < len(self._buckets):
            self._send()
        for bucket in self._buckets:
            bucket.work.wait()
            bucket.flat.div_(dist.world_size())
        return [float(id(p) in self._found) for bucket in self._buckets for p in bucket.params]

    def settle(self, found: Sequence[float]) -> None:
        """Take the gradients of those away that got none anywhere; found: sums over processes."""
        params = [p for bucket in self._buckets for p in bucket.params]
        for p, anywhere in zip(params, found, strict=True):
            if not anywhere:
                p.grad = None


def _cut(params: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """In order, in pieces of up to `size` bytes and one type; a larger parameter is a piece of its own."""
    pieces: list[list[nn.Parameter]] = []
    room = 0
    for p in params:
        room -= p.numel() * p.element_size()
        if not pieces or room < 0 or p.dtype != pieces[-1][0].dtype:
            pieces.append([])
            room = size - p.numel() * p.element_size()
        pieces[-1].append(p)
    return pieces


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """Of all gradients together, as if none were spread."""
    whole = nn.utils.get_total_norm([g for g in gradients if not is_sharded(g)])
    parts = [to_local(g) for g in gradients if is_sharded(g)]
    if not parts:
        return whole
    squares = torch.stack(torch._foreach_norm(parts)).square().sum()
    return (collectives.total(squares) + whole.to(squares.device).square()).sqrt()


def clip(params: Sequence[nn.Parameter], most: float, norm: Tensor) -> None:
    """Scale gradients of this norm to the norm `most`, if it is larger."""
    if norm.device.type == "cpu" and norm <= most:  # elsewhere one would wait to know it
        return
    nn.utils.clip_grads_with_norm_([p for p in params if not is_sharded(p)], most, norm)
    parts = [to_local(p.grad) for p in params if is_sharded(p) and p.grad is not None]
    if parts:
        torch._foreach_mul_(parts, (most / (norm + 1e-6)).clamp(max=1.0))
