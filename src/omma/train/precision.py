"""Training in a lower precision: fp32 parameters, cast once a step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from omma.core.dtensor import is_sharded
from omma.core.protocols import Batch, Clock, Method, StepOutput


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(t, dtype=dtype) for t in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


class _Lowered(torch.autograd.Function):
    """All weights in `dtype`, and their gradients in fp32, as a single node of the graph."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # unused weights have no gradient, as in fp32
        return tuple(_copies(weights, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        full = iter(_copies([g for g in grads if g is not None], torch.float32))
        return (None, *(None if g is None else next(full) for g in grads))


class Cast:
    """Calls a method with its weights in `dtype`; gradients reach the fp32 parameters through the cast.

    One cast a step, and activations in one precision throughout, which is faster than autocast's repeated
    casts. Batch norms keep their scale, shift and statistics in fp32, and so do scalars (bf16 would round off
    the updates of a logit scale); losses are fp32. Sharded blocks are cast when they are gathered
    (train/fsdp.py).

    deliver: called with each parameter and the gradient of its cast copy as soon as the backward pass has it,
    so that gradients can be sent meanwhile; the single node would return them all at its end.
    """

    def __init__(
        self,
        method: Method,
        dtype: torch.dtype,
        deliver: Callable[[nn.Parameter, Tensor], None] | None = None,
    ) -> None:
        self.method, self.dtype, self.deliver = method, dtype, deliver
        norms = {
            id(p) for m in method.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)
        }
        self.lowered = {
            n: p for n, p in method.named_parameters() if p.ndim and id(p) not in norms and not is_sharded(p)
        }
        every = sum(1 for _ in method.named_parameters(remove_duplicate=False))
        self.tied = every > sum(1 for _ in method.parameters())

    def __call__(self, batch: Batch, clock: Clock) -> StepOutput:
        if self.dtype == torch.float32:
            return self.method(batch, clock)
        trained = {n: p for n, p in self.lowered.items() if p.requires_grad}
        frozen = {n: p for n, p in self.lowered.items() if not p.requires_grad}
        weights = dict(zip(frozen, _copies(list(frozen.values()), self.dtype), strict=True))
        own = list(trained.values())
        lowered = _Lowered.apply(self.dtype, *own) if self.deliver is None else self._leaves(own)
        weights |= zip(trained, lowered, strict=True)  # pyright: ignore[reportArgumentType]
        return functional_call(self.method, weights, (batch, clock), tie_weights=self.tied)

    def _leaves(self, own: Sequence[nn.Parameter]) -> list[Tensor]:
        """Copies whose gradients are delivered and freed as soon as they are complete."""

        def deliver_grad(p: nn.Parameter, copy: Tensor) -> None:
            assert self.deliver is not None
            assert copy.grad is not None
            self.deliver(p, copy.grad)
            copy.grad = None

        with torch.no_grad():
            copies = _copies(own, self.dtype)
        for p, copy in zip(own, copies, strict=True):
            copy.requires_grad_().register_post_accumulate_grad_hook(partial(deliver_grad, p))
        return copies
