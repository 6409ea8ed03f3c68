"""Statistics of features and soft assignments without labels: rank, spread, entropy (2210.02885).

Those of features are computed in fp64. All return NaN for inputs that are not finite, to make these visible.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def unit(features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Rows scaled to length 1, in fp64; a row of zeros stays zero."""
    wide = features.double()
    length = wide.norm(dim=-1, keepdim=True)
    return wide / length.masked_fill(length == 0, 1.0)


def effective_rank(features: Float[Tensor, "n d"]) -> float:
    """exp of the entropy of the normalised singular values [Garrido 2023, eq. 1]: RankMe.

    Between 1 and min(n, d). Not centred, as in the paper: equal features have rank 1, and so, by convention,
    have zeros. d orthonormal rows have rank d.
    """
    wide = features.detach().double()
    if not bool(torch.isfinite(wide).all()):
        return math.nan
    scale = wide.abs().max() if wide.numel() else 0.0
    if scale == 0:
        return 1.0
    wide = wide / scale  # keeps the squares below from over- and underflowing
    gram = wide.T @ wide if wide.shape[0] > wide.shape[1] else wide @ wide.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return float(entropy(singular / singular.sum()).exp())


def dimension_std(features: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """Standard deviation of each dimension over the rows (population), 0 where it is constant.

    Of `unit` features, 1/sqrt(d) everywhere is the most even spread, 0 is collapse [Chen 2011.10566, §4.1].
    """
    return features.detach().double().std(dim=0, correction=0)


def entropy(probabilities: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    """Entropy of each row in nats: 0 for one-hot, log k for uniform."""
    return torch.special.entr(probabilities).sum(-1)


def kl_to_uniform(probabilities: Float[Tensor, "k"]) -> Float[Tensor, ""]:
    """KL to the uniform distribution, in nats: 0 for uniform, log k for one-hot."""
    return math.log(probabilities.numel()) - entropy(probabilities)
