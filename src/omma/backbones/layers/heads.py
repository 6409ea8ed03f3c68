"""Projection heads between an encoder and a loss, which are not exported."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.ops import directions
from omma.ops.batch_norm import BatchNorm

_ROWS = 1 << 13  # of a matrix, cast at a time


def projector(dims: list[int], last_norm: bool = False) -> nn.Sequential:
    """Linear, batch norm, ReLU, ..., linear, of widths `dims` [Chen 2020, section 4.2].

    Layers before a norm have no bias. last_norm: end with a batch norm without scale and shift.
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


def require_two_classes(classes: Sequence[str]) -> None:
    """Raise ValueError for fewer than two classes."""
    if len(classes) < 2:
        raise ValueError(
            f"all images are of one class ({', '.join(classes)}), and at least two are needed: choose a "
            "method without labels (--method simclr)"
        )


def classifier(dim: int, classes: Sequence[str]) -> nn.Linear:
    """A linear layer with initial values near 0, for equal probabilities [Touvron 2020, 2012.12877]."""
    require_two_classes(classes)
    head = nn.Linear(dim, len(classes))
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


class PrototypeHead(nn.Module):
    """MLP, L2 norm, and cosine similarity to `prototypes` learned unit vectors [Caron 2021, appendix C].

    d - hidden - hidden - bottleneck with GELU; the last layer is DINO's weight-normed linear with the norm
    fixed at 1. gain: rather, each prototype's norm is learned (`last.gain`, from 1), as in iBOT's and
    DINOv2's published runs.
    """

    def __init__(
        self, dim: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256, gain: bool = False
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.last = nn.Linear(bottleneck, prototypes, bias=False)
        if gain:  # a matrix, so that it decays as in the published codes
            self.last.register_parameter("gain", nn.Parameter(torch.ones(prototypes, 1)))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def bottleneck(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        """Unit vectors to compare with the prototypes."""
        return F.normalize(self.mlp(x), dim=-1, eps=1e-6)

    @property
    def gain(self) -> Float[Tensor, "k"] | None:
        """The prototypes' norms, where they are learned."""
        gain = getattr(self.last, "gain", None)
        return None if gain is None else gain[:, 0]

    def scales(self) -> Float[Tensor, "k"]:
        """What the rows of `last.weight` are multiplied by, in fp32 or better."""
        inverse = 1 / directions.lengths(self.last.weight)
        return inverse if self.gain is None else inverse * self.gain.to(inverse.dtype)

    def cosines(self, bottleneck: Float[Tensor, "b e"]) -> Float[Tensor, "b k"]:
        """Cosines between unit vectors and the prototypes (times the gain), in fp32 or better."""
        scales = self.scales()
        return F.linear(bottleneck, self.last.weight).to(scales.dtype).mul_(scales)

    @torch.no_grad()
    def mean(self, bottleneck: Float[Tensor, "b e"]) -> Float[Tensor, "k"]:
        """Mean of `cosines`, which are linear in the vectors, in fp32 or better; 0 for no vectors."""
        scales = self.scales()
        mean = bottleneck.to(scales.dtype).sum(0) / max(1, len(bottleneck))
        rows = self.last.weight.split(_ROWS)
        return torch.cat([some.to(mean.dtype) @ mean for some in rows]).mul_(scales)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return self.cosines(self.bottleneck(x))
