"""LARS: a rate for each tensor, by the norms of weights and gradient [You 2017, arXiv 1708.03888]."""

from collections.abc import Iterable
from typing import Any

import torch

from omma.core import collectives
from omma.core.dtensor import is_sharded, to_local


class Lars(torch.optim.Optimizer):
    """SGD with momentum, whose rate for each tensor is lr * trust |w| / |g|; SimCLR's, BYOL's and VICReg's.

    g includes the weight decay. Groups without decay (biases, norms) have the plain rate lr. A tensor whose
    weights or gradient are 0 has it too.
    """

    MOMENTS = ("momentum",)

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9, trust: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                weights, gradient, rate = to_local(p), to_local(p.grad), group["lr"]
                if group.get("decay", True):
                    gradient = gradient.add(weights, alpha=group["weight_decay"])
                    w, g = (_norm(x, is_sharded(p)) for x in (weights, gradient))
                    ratio = torch.where((w > 0) & (g > 0), group["trust"] * w / g, torch.ones_like(w))
                    gradient = gradient * ratio
                state = self.state[p]
                if "momentum" not in state:
                    state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
                state["step"] += 1
                velocity = to_local(state["momentum"])
                velocity.mul_(group["momentum"]).add_(gradient, alpha=rate)
                weights.sub_(velocity)


def _norm(x: torch.Tensor, sharded: bool) -> torch.Tensor:
    return collectives.total(x.square().sum()).sqrt() if sharded else x.norm()
