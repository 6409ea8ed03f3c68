"""Reconstruction errors of whole images, which train a tokenizer's decoder."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPSILON = 0.1  # smallest distance of mapped values from 0 and 1 [Ramesh 2021, appendix A.3]


def map_pixels(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """[0, 1] to [eps, 1 - eps], so that the logit of a black or white pixel is finite [Ramesh 2021, A.3]."""
    return (1 - 2 * EPSILON) * x + EPSILON


def unmap_pixels(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The inverse, clipped to [0, 1]."""
    return ((x - EPSILON) / (1 - 2 * EPSILON)).clamp(0, 1)


def logit_laplace(
    mean: Float[Tensor, "*b p"], log_scale: Float[Tensor, "*b p"], target: Float[Tensor, "*b p"]
) -> Float[Tensor, ""]:
    """Mean of -log f(x | mu, b) = log(2 b x (1 - x)) + |logit(x) - mu| / b [Ramesh 2021, eq. 2].

    target: in (0, 1). In nats; negative where the density is above 1.
    """
    mean, log_scale, target = mean.float(), log_scale.float(), target.float()
    log = torch.log(2 * target * (1 - target)) + log_scale
    return (log + (torch.logit(target) - mean).abs() * torch.exp(-log_scale)).mean()


def l1(predicted: Float[Tensor, "*b p"], target: Float[Tensor, "*b p"]) -> Float[Tensor, ""]:
    """Mean absolute error."""
    return F.l1_loss(predicted.float(), target.float())


def l2(predicted: Float[Tensor, "*b p"], target: Float[Tensor, "*b p"]) -> Float[Tensor, ""]:
    """Mean squared error."""
    return F.mse_loss(predicted.float(), target.float())


def against_mean_image(
    predicted: Float[Tensor, "b n p"], target: Float[Tensor, "b n p"]
) -> Float[Tensor, ""]:
    """Squared error relative to the batch's mean image: 0 is perfect, 1 no better than that.

    1 for a batch of equal images.
    """
    mean = l2(target.mean(0, keepdim=True).expand_as(target), target)
    return torch.where(mean > 1e-12, l2(predicted, target) / mean.clamp(min=1e-12), torch.ones_like(mean))
