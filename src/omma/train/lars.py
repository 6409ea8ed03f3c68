"""LARS: a rate for each tensor, by the norms of weights and gradient [You 2017, arXiv 1708.03888]."""

from collections.abc import Iterable
from typing import Any, Literal

import torch

from omma.core import collectives
from omma.core.dtensor import is_sharded, to_local


class Lars(torch.optim.Optimizer):
    """SGD with momentum, whose rate for each tensor is lr * trust |w| / |g|; SimCLR's, BYOL's and VICReg's.

    g includes the weight decay. Groups without decay (biases, norms) have the plain rate lr. A tensor whose
    weights or gradient are 0 has it too. momentum_of: "updates", v <- m v + lr g, as SimCLR's code, or
    "gradients", v <- m v + g and the rate afterwards, as BYOL's, VICReg's and MoCo v3's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        trust: float = 1e-3,
        momentum_of: Literal["updates", "gradients"] = "updates",
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})
        self.momentum_of = momentum_of

    def moments(self, p: torch.Tensor) -> tuple[str, ...]:
        """Names of what is kept for the parameter, each as large as it is."""
        return ("momentum",)

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
                inside, outside = (rate, 1.0) if self.momentum_of == "updates" else (1.0, rate)
                velocity.mul_(group["momentum"]).add_(gradient, alpha=inside)
                weights.sub_(velocity, alpha=outside)


def _norm(x: torch.Tensor, sharded: bool) -> torch.Tensor:
    return collectives.total(x.square().sum()).sqrt() if sharded else x.norm()
