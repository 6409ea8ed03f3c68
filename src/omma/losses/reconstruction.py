"""Errors of predicted patches."""

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mse(
    predicted: Float[Tensor, "b n p"], target: Float[Tensor, "b n p"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """Mean squared error over the masked patches only [He 2021, section 3]; 0 if nothing is masked."""
    error = (predicted.float() - target.float()).square().mean(-1)
    return (error * mask).sum() / mask.sum().clamp(min=1)
