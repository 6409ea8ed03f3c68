"""Attentive pooling: a learned query attends to the patches [Chen 2022, arXiv 2202.03026, section 4.1].

    pooled = sum_i a_i (x_i + V n_i),  a = softmax_i(q . K n_i / sqrt(d)) for each head, n = LN(x)

Only the query, K, V and the LN are trained. The query and V start at 0, so that `pooled` begins as the mean
of the patches; a query that is 0 has a gradient, since K starts at random.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.core.backbone import Backbone, Features


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of attentive pooling."""

    heads: int = 8  # each attends by itself; the largest divisor of the width up to this is used

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"adapt.heads={self.heads}: must be at least 1")


class AttentivePool(nn.Module):
    """Patches to a vector of the same width."""

    of_adapter = True

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = max(h for h in range(1, heads + 1) if dim % h == 0)
        self.query = nn.Parameter(torch.zeros(dim))
        self.norm = nn.LayerNorm(dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        b, n, d = patches.shape
        normed = self.norm(patches)
        values = (patches + self.value(normed)).view(b, n, self.heads, d // self.heads)
        return (self._weights(normed)[..., None] * values).sum(1).reshape(b, d)

    def weights(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b heads n"]:
        """The weight of each patch, which sum to 1 for each head."""
        return self._weights(self.norm(patches)).transpose(1, 2)

    def _weights(self, normed: Float[Tensor, "b n d"]) -> Float[Tensor, "b n heads"]:
        b, n, d = normed.shape
        width = d // self.heads
        query = self.query.view(self.heads, width) / width**0.5
        return (self.key(normed).view(b, n, self.heads, width) * query).sum(-1).softmax(1)


class Attending(Backbone):
    """A backbone, as its subclasses name it, whose pooled feature is that of its `attentive` module."""

    attentive: AttentivePool

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        return self._attended(super().encode(tokens, grid, keep))

    def encode_many(
        self, batches: Sequence[tuple[Float[Tensor, "_b _n d"], tuple[int, int]]]
    ) -> list[Features]:
        return [self._attended(features) for features in super().encode_many(batches)]

    def _attended(self, features: Features) -> Features:
        return features._replace(pooled=self.attentive(features.patches))


def insert(network: Backbone, config: Config) -> None:
    """Let `pooled` be the attentive pooling of the patches."""
    first = next(network.parameters())
    network.attentive = AttentivePool(network.dim, config.heads).to(first.device, first.dtype)
    network.__class__ = _attending(type(network))
    network.pool = "mean"


@functools.cache
def _attending(kind: type[Backbone]) -> type[Backbone]:
    return type(f"Attending{kind.__name__}", (Attending, kind), {})
