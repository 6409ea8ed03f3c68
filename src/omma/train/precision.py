"""Training in a lower precision: weights cast once a step, full-precision copies kept."""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from omma.protocols import Batch, Clock, Method, StepOutput


class Cast:
    """Calls a method with its weights in `dtype`; gradients reach the fp32 parameters through the cast.

    One cast a weight and step, and activations in one precision throughout, which is faster than autocast's
    changes back and forth. Batch norms keep their fp32 scale, shift and statistics; losses are fp32.
    """

    def __init__(self, method: Method, dtype: torch.dtype) -> None:
        assert isinstance(method, nn.Module)
        self.method, self.dtype = method, dtype
        norms = {
            id(p) for m in method.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)
        }
        self.names = [n for n, p in method.named_parameters() if id(p) not in norms]

    def __call__(self, batch: Batch, clock: Clock) -> StepOutput:
        if self.dtype == torch.float32:
            return self.method(batch, clock)
        assert isinstance(self.method, nn.Module)
        parameters = dict(self.method.named_parameters())
        weights = {name: parameters[name].to(self.dtype) for name in self.names}
        return functional_call(self.method, weights, (batch, clock))
