"""The MLP of a transformer block, plain or gated."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.ops.cpu.residual import Layers
from omma.ops.linear import Linear, linear_gelu, norm_linear, side_by_side
from omma.ops.norm import DeferredNorm

ACTIVATIONS = ("gelu", "quickgelu")


class Mlp(nn.Module):
    """Linear, GELU [Hendrycks 2016, arXiv 1606.08415] or CLIP's approximation x sigmoid(1.702 x), linear."""

    def __init__(self, dim: int, hidden: int, activation: Literal["gelu", "quickgelu"] = "gelu") -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n d"] | DeferredNorm) -> Float[Tensor, "b n d"]:
        if self.activation == "gelu":
            return self.fc2(linear_gelu(x, self.fc1))
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden))

    def branch_layers(self) -> Layers:
        plain = type(self) is Mlp and self.activation == "gelu"
        return Layers((self.fc1,), self.fc2, "gelu" if plain else "other")


class SwiGLU(nn.Module):
    """W (silu(W_g x) * (W_x x)) [Shazeer 2020, arXiv 2002.05202], gate and value in one product.

    hidden: width of gate and value each.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 2 * hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n d"] | DeferredNorm) -> Float[Tensor, "b n d"]:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)

    def branch_layers(self) -> Layers:
        return Layers((self.fc1,), self.fc2)


class SplitSwiGLU(nn.Module):
    """SwiGLU with a layer each for gate and value and a norm before `fc2` [Fang 2023, arXiv 2303.11331]."""

    def __init__(self, dim: int, hidden: int, inner_norm: bool, eps: float) -> None:
        super().__init__()
        self.fc1_g = Linear(dim, hidden)
        self.fc1_x = Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden, eps=eps) if inner_norm else nn.Identity()
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n d"] | DeferredNorm) -> Float[Tensor, "b n d"]:
        gate, value = side_by_side(x, (self.fc1_g, self.fc1_x)).chunk(2, dim=-1)
        x = F.silu(gate) * value
        if isinstance(self.norm, nn.LayerNorm):
            return norm_linear(x, self.norm, self.fc2)
        return self.fc2(x)

    def branch_layers(self) -> Layers:
        return Layers((self.fc1_g, self.fc1_x), self.fc2)
