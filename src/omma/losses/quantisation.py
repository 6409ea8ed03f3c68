"""Regularisers of a tokenizer's codes: commitment, and divergence from a uniform distribution."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def commitment(encoded: Float[Tensor, "*b d"], code: Float[Tensor, "*b d"]) -> Float[Tensor, ""]:
    """Mean of (z - sg[e])^2 over all values, as in the code [van den Oord 2017, eq. 3, third term]."""
    return F.mse_loss(encoded.float(), code.detach().float())


def kl_to_uniform(logits: Float[Tensor, "*b k"]) -> Float[Tensor, ""]:
    """Mean of KL(softmax(logits) || uniform) = log k - entropy, in nats: 0 for equal logits, <= log k."""
    log = logits.float().log_softmax(-1)
    return math.log(logits.shape[-1]) + (log.exp() * log).sum(-1).mean()
