"""Errors of predicted patches."""

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mse(
    predicted: Float[Tensor, "b n p"], target: Float[Tensor, "b n p"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """Mean squared error over the masked patches only [He 2021, section 3]; 0 if nothing is masked."""
    error = (predicted.float() - target.float()).square().mean(-1)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def masked_l1(
    predicted: Float[Tensor, "b n p"], target: Float[Tensor, "b n p"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """Mean absolute error over the values of masked patches only [Xie 2021, eq. 2]; 0 if none is masked."""
    error = (predicted.float() - target.float()).abs().mean(-1)
    return (error * mask).sum() / mask.sum().clamp(min=1)
