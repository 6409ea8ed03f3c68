"""Gumbel noise for relaxed choices [Jang 2016, arXiv 1611.01144; Maddison 2016, arXiv 1611.00712]."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.ops import random
from omma.protocols import Key


def noise(
    key: Key, stream: int, shape: tuple[int, int], device: torch.device | str = "cpu"
) -> Float[Tensor, "b n k"]:
    """-log E, E exponential, `shape` of them for each image.

    A pure function of (seed, epoch, index, stream): an image's numbers depend neither on who else is in the
    batch nor on what was drawn before. Philox gives each image a seed and torch's generator of the device the
    rest, for millions of numbers are drawn (kinds of devices have unlike numbers).
    """
    words = random.bits(key, stream, 2).astype(np.uint64)
    seeds = (words[:, 0] << np.uint64(31)) | (words[:, 1] >> np.uint64(1))  # 63 bits
    out = torch.empty(len(seeds), *shape, device=device)
    generator = torch.Generator(device)
    for image, seed in zip(out, seeds.tolist(), strict=True):
        image.exponential_(generator=generator.manual_seed(seed))
    return out.clamp_(min=torch.finfo(out.dtype).tiny).log_().neg_()


def relaxed(
    logits: Float[Tensor, "b n k"], noise: Float[Tensor, "b n k"], temperature: float
) -> Float[Tensor, "b n k"]:
    """softmax((logits + noise) / temperature): one-hot draws from softmax(logits) as that goes to 0."""
    return ((logits.float() + noise) / temperature).softmax(-1)
