"""The perceptron of a transformer block, plain or gated; each takes its layer norm as an argument (ADR 4)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.ops.cpu import branches
from omma.ops.gelu import gelu
from omma.ops.linear import Linear, linear_gelu
from omma.ops.norm import norm, norm_linear


def _quick(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "quickgelu": _quick}  # CLIP's is quick


class Mlp(nn.Module):
    """Linear, GELU [Hendrycks 2016, arXiv 1606.08415] or its sigmoid approximation, linear."""

    def __init__(self, dim: int, hidden: int, activation: Literal["gelu", "quickgelu"] = "gelu") -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n d"], before: nn.LayerNorm) -> Float[Tensor, "b n d"]:
        if self.activation == "gelu" and not torch.is_grad_enabled():
            return self.fc2(linear_gelu(norm(x, before), self.fc1.weight, self.fc1.bias))
        x = norm_linear(x, before, self.fc1.weight, self.fc1.bias)
        return self.fc2(ACTIVATIONS[self.activation](x))


def perceive(
    x: Float[Tensor, "b n d"],
    before: nn.LayerNorm,
    mlp: nn.Module,
    gamma: Float[Tensor, "d"] | None = None,
    add: bool = False,
) -> Float[Tensor, "b n d"]:
    """gamma * mlp(x, before), and x where `add`; in one kernel where it fits."""
    if (
        type(mlp) is Mlp
        and mlp.activation == "gelu"
        and branches.takes_mlp(x, before, mlp.fc1, mlp.fc2, gamma, mlp)
    ):
        return branches.mlp(x, before, mlp.fc1, mlp.fc2, gamma, add)
    out = mlp(x, before)
    if gamma is not None:
        out = out * gamma
    return x + out if add else out


class SwiGLU(nn.Module):
    """W (silu(W_g x) * (W_x x)) [Shazeer 2020, arXiv 2002.05202], gate and value in one product.

    hidden: width of the gated part; `fc1` gives twice as many.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 2 * hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n d"], before: nn.LayerNorm) -> Float[Tensor, "b n d"]:
        gate, value = norm_linear(x, before, self.fc1.weight, self.fc1.bias).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class SplitSwiGLU(nn.Module):
    """The same with a layer for each, and a norm before the last [Fang 2023, arXiv 2303.11331, "sub-LN"]."""

    def __init__(self, dim: int, hidden: int, inner_norm: bool, eps: float) -> None:
        super().__init__()
        self.fc1_g = Linear(dim, hidden)
        self.fc1_x = Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden, eps=eps) if inner_norm else nn.Identity()
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n d"], before: nn.LayerNorm) -> Float[Tensor, "b n d"]:
        weight = torch.cat([self.fc1_g.weight, self.fc1_x.weight])
        bias = torch.cat([self.fc1_g.bias, self.fc1_x.bias])
        gate, value = norm_linear(x, before, weight, bias).chunk(2, dim=-1)
        x = F.silu(gate) * value
        if isinstance(self.norm, nn.LayerNorm):
            return norm_linear(x, self.norm, self.fc2.weight, self.fc2.bias)
        return self.fc2(x)
