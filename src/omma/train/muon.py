"""Muon: updates of matrices are orthogonal, those of all else AdamW's.

[Jordan 2024, kellerjordan.github.io/posts/muon]
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

from omma.core.dtensor import shard_like, to_full, to_local

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of a quintic that takes singular values close to 1 [Jordan 2024]
ITERATIONS = 5
RMS = 0.2  # of an update at rate 1, as AdamW's have about [Liu 2025, arXiv 2502.16982, section 2.2]


def orthogonalised(x: Float[Tensor, "k n m"], dtype: torch.dtype | None = None) -> Float[Tensor, "k n m"]:
    """Near U V^T of each x = U S V^T, by Newton-Schulz iterations; most singular values end in [.7, 1.2].

    dtype: of the products; None: that of `x`. A matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    y = x.to(dtype or x.dtype)
    y = y / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).to(y.dtype) + 1e-7)
    for _ in range(ITERATIONS):
        gram = y @ y.mT
        y = ((gram @ gram).mul_(c).add_(gram, alpha=b) @ y).add_(y, alpha=a)
    return y.to(x.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum of each matrix, orthogonalised; AdamW for vectors, tokens and depthwise kernels.

    A kernel is a matrix with a row for each output channel. An update of a matrix has a root mean square of
    .2 rate, about AdamW's [Liu 2025], with rate = lr * matrix_lr, which its decay follows, too. Sharded
    matrices are gathered to be orthogonalised. dtype: of the iterations' products.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        matrix_lr: float = 1.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {"lr": lr, "matrix_lr": matrix_lr, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, defaults | {"weight_decay": 0.0})
        self.dtype = dtype
        self._matrices = {
            id(p) for group in self.param_groups for p in group["params"] if _is_matrix(p, group)
        }

    def moments(self, p: Tensor) -> tuple[str, ...]:
        """Names of what is kept for the parameter, each as large as it is."""
        return ("momentum",) if id(p) in self._matrices else ("exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for p in trained:
                if p not in self.state:
                    blank = {name: torch.zeros_like(p) for name in self.moments(p)}
                    self.state[p] = {"step": torch.zeros((), device=p.device), **blank}
            self._orthogonal([p for p in trained if id(p) in self._matrices], group)
            self._adamw([p for p in trained if id(p) not in self._matrices], group)

    def _orthogonal(self, params: Sequence[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        gradients = [p.grad for p in params if p.grad is not None]
        momenta, steps = ([self.state[p][name] for p in params] for name in ("momentum", "step"))
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        alike = defaultdict(list)  # of one shape, the shorter side first: stacks are faster than single ones
        for p, ahead in zip(params, torch._foreach_lerp(gradients, momenta, group["momentum"]), strict=True):
            matrix = to_full(ahead).flatten(1)
            tall = matrix.shape[0] > matrix.shape[1]
            matrix = matrix.mT if tall else matrix
            alike[matrix.shape].append((p, matrix, tall))
        rate = group["lr"] * group["matrix_lr"]
        for shape, entries in alike.items():
            stack = torch.stack([matrix for _, matrix, _ in entries])
            updates = orthogonalised(stack, self.dtype).mul_(-rate * RMS * max(shape) ** 0.5)
            weights = [to_local(p) for p, _, _ in entries]
            changes = [
                shard_like((update.mT if tall else update).reshape(p.shape), p)
                for (p, _, tall), update in zip(entries, updates, strict=True)
            ]
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
            torch._foreach_add_(weights, changes)

    def _adamw(self, params: Sequence[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        states = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        adamw(
            list(params), [p.grad for p in params if p.grad is not None],
            [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], [],
            [state["step"] for state in states],
            fused=all(p.device.type in ("cpu", "cuda") for p in params), amsgrad=False, beta1=beta1,
            beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip


def _is_matrix(p: Tensor, group: dict[str, Any]) -> bool:
    """Is it a matrix or a kernel over several channels? Tokens, positions and tables are in other groups."""
    return group.get("decay", True) and p.ndim > 1 and not (p.ndim > 2 and p.shape[1] == 1)
