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
    predicted: Float[Tensor, "b n p"],
    target: Float[Tensor, "b n p"],
    mask: Bool[Tensor, "b n"],
    count: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Absolute error over the masked patches only, divided by `count` [Xie 2021, eq. 2].

    count: number of masked patches, mean over processes, so that all masked patches have the same weight.
    """
    error = (predicted.float() - target.float()).abs().mean(-1)
    return (error * mask).sum() / count
