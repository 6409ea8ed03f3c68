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
    """Absolute error over the values of masked patches only [Xie 2021, eq. 2], as a share of `count` patches.

    count: how many are masked, as a mean over processes, so that each of them all counts alike.
    """
    error = (predicted.float() - target.float()).abs().mean(-1)
    return (error * mask).sum() / count
