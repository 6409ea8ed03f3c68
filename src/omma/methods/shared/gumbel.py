"""The Gumbel-softmax [Jang 2016, arXiv 1611.01144; Maddison 2016, arXiv 1611.00712]."""

import torch
from jaxtyping import Float
from torch import Tensor

from omma.core import random
from omma.core.protocols import Key


def noise(
    key: Key, stream: int, shape: tuple[int, int], device: torch.device | str = "cpu"
) -> Float[Tensor, "b n k"]:
    """Gumbel noise: -log E, E exponential, of `shape` for each image (`random.fill`)."""
    out = random.fill(key, stream, shape, device, Tensor.exponential_)
    return out.clamp_(min=torch.finfo(out.dtype).tiny).log_().neg_()


def relaxed(
    logits: Float[Tensor, "b n k"], noise: Float[Tensor, "b n k"], temperature: float
) -> Float[Tensor, "b n k"]:
    """softmax((logits + noise) / temperature): one-hot samples of softmax(logits) in the limit of 0."""
    return ((logits.float() + noise) / temperature).softmax(-1)
