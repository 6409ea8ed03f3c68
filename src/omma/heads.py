"""Projection heads: what sits between an encoder and a loss, and is not exported."""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.dist import BatchNorm


def projector(dims: list[int], last_norm: bool = False) -> nn.Sequential:
    """Linear, batch norm, ReLU, ..., linear through the widths `dims` [Chen 2020, section 4.2].

    Layers before a norm have no bias. `last_norm` ends with a batch norm without scale and shift.
    """
    layers: list[nn.Module] = []
    pairs = list(pairwise(dims))
    for i, (fan_in, fan_out) in enumerate(pairs):
        last = i == len(pairs) - 1
        layers.append(nn.Linear(fan_in, fan_out, bias=last and not last_norm))
        if not last:
            layers += [BatchNorm(fan_out), nn.ReLU()]
        elif last_norm:
            layers.append(BatchNorm(fan_out, affine=False))
    return nn.Sequential(*layers)


class PrototypeHead(nn.Module):
    """MLP, L2 norm, and cosine similarity to `prototypes` learned unit vectors [Caron 2021, appendix C].

    d - hidden - hidden - bottleneck with GELU; the last layer is DINO's weight-normed linear with the norm
    fixed at 1.
    """

    def __init__(self, dim: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.last = nn.Linear(bottleneck, prototypes, bias=False)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def bottleneck(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        """Unit vectors that are compared with the prototypes."""
        return F.normalize(self.mlp(x), dim=-1, eps=1e-6)

    def prototypes(self) -> Float[Tensor, "k e"]:
        """Unit vectors."""
        return F.normalize(self.last.weight, dim=-1)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return F.linear(self.bottleneck(x), self.prototypes())
