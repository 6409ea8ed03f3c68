"""Losses of two frames of a sequence: features that move predictably, or slowly."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_EPSILON = 1e-12  # under roots, whose gradient is infinite at 0


def equivariance(
    first: Float[Tensor, "b d"],
    second: Float[Tensor, "b d"],
    maps: Float[Tensor, "g d d"],
    pattern: Int[Tensor, "b"],
    margin: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """mean_ij of d_p(M_p z_i, z_j) + mean_(g != p) d_g(M_g z_i, z_j) [Jayaraman 2015, eq. 5, 6]; and rho.

    d_g is the distance itself where p_ij = g, else max(margin - distance, 0). The paper sums over the others;
    with three or more of them the sum is least where features are constant and every map moves them by the
    margin, so it is a mean here. rho: mean |M_p z_i - z_j| over mean |z_i - z_j|, a ratio of means, since
    single pairs may not move at all.
    """
    first, second = first.float(), second.float()
    moved = torch.einsum("gde,be->bgd", maps.float(), first)
    distances = distance(moved, second[:, None])  # [b, g]
    own = torch.zeros_like(distances).scatter(1, pattern[:, None], 1.0)
    others = (1 - own) * (margin - distances).clamp(min=0) / max(len(maps) - 1, 1)
    rows = (own * distances + others).sum(1)
    error = (own * distances).sum() / distance(first, second).sum()
    return rows.mean(), error.detach()


def slowness(
    first: Float[Tensor, "b d"],
    second: Float[Tensor, "b d"],
    sequence: Int[Tensor, "b"],
    everyone: tuple[Float[Tensor, "n d"], Int[Tensor, "n"]],
    margin: float,
    power: int,
) -> Float[Tensor, ""]:
    """mean_i d(z_i, z_i')^p + mean_(s_i != s_j) max(margin - d(z_i, z_j'), 0)^p.

    sequence: that of each pair. everyone: second frames and sequences of all processes. The second mean is
    one over pairs i of means over frames j of other sequences. p = 1: L1 distances,
    temporal coherence [Mobahi 2009, eq. 2]; 2: Euclidean, DrLIM without its factor 1/2 [Hadsell 2006, eq. 4].
    """
    others, sequences = everyone
    contrasted = sequence[:, None] != sequences
    far = (margin - distance(first[:, None], others, power)).clamp(min=0).pow(power) * contrasted
    # each row has its own share, so that processes average to the whole batch
    share = far.sum(1) / contrasted.sum(1).clamp(min=1)
    return distance(first, second, power).pow(power).mean() + share.mean()


def distance(a: Float[Tensor, "*b d"], b: Float[Tensor, "*c d"], power: int = 2) -> Float[Tensor, "*e"]:
    """L1 (power 1) or Euclidean (2) distances, in fp32, with a finite gradient at 0."""
    difference = a.float() - b.float()
    if power == 1:
        return difference.abs().sum(-1)
    return (difference.square().sum(-1) + _EPSILON).sqrt()
