"""Lengths of vectors of which only the direction matters."""

import torch
from jaxtyping import Float
from torch import Tensor


def upcast(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """x in fp32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def lengths(vectors: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """Euclidean norms in fp32 or better, at least 1e-12, so that vectors of zeros can be divided."""
    exact = torch.promote_types(vectors.dtype, torch.float32)
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=exact).clamp_min(1e-12)
