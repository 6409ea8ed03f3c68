"""Vectors of any length that stand for their directions."""

import torch
from jaxtyping import Float
from torch import Tensor


def lengths(vectors: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """Euclidean, in fp32 or better, at least 1e-12: what to divide by, be it by a vector of zeros."""
    exact = torch.promote_types(vectors.dtype, torch.float32)
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=exact).clamp_min(1e-12)
