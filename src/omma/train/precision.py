"""Training in a lower precision: weights cast once a step, full-precision copies kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from omma.protocols import Batch, Clock, Method, StepOutput


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(t, dtype=dtype) for t in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


class _Lowered(torch.autograd.Function):
    """All weights in `dtype`, and their gradients back in fp32: one node of the graph, not one a weight."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # what took no part in the loss has no gradient, as in fp32
        return tuple(_copies(weights, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        full = iter(_copies([g for g in grads if g is not None], torch.float32))
        return (None, *(None if g is None else next(full) for g in grads))


class Cast:
    """Calls a method with its weights in `dtype`; gradients reach the fp32 parameters through the cast.

    One cast a step, and activations in one precision throughout, which is faster than autocast's changes back
    and forth. Batch norms keep their fp32 scale, shift and statistics, single numbers (a logits' scale, whose
    steps bf16 would swallow) their precision; losses are fp32.
    """

    def __init__(self, method: Method, dtype: torch.dtype) -> None:
        self.method, self.dtype = method, dtype
        norms = {
            id(p) for m in method.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)
        }
        self.names = [n for n, p in method.named_parameters() if p.ndim and id(p) not in norms]

    def __call__(self, batch: Batch, clock: Clock) -> StepOutput:
        if self.dtype == torch.float32:
            return self.method(batch, clock)
        parameters = dict(self.method.named_parameters())
        trained = [n for n in self.names if parameters[n].requires_grad]
        frozen = [n for n in self.names if not parameters[n].requires_grad]
        weights = dict(zip(frozen, _copies([parameters[n] for n in frozen], self.dtype), strict=True))
        lowered = _Lowered.apply(self.dtype, *(parameters[n] for n in trained))
        weights |= zip(trained, lowered, strict=True)  # pyright: ignore[reportArgumentType]
        return functional_call(self.method, weights, (batch, clock))
