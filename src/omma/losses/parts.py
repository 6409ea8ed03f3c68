"""TransFG's contrastive loss between images of the same class and of others [He 2021, arXiv 2103.07976]."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Per = Literal["pair", "image"]


def contrast(
    x: Float[Tensor, "b d"],
    labels: Int[Tensor, "b"],
    margin: float = 0.4,
    per: Per = "pair",
    everyone: tuple[Float[Tensor, "n d"], Int[Tensor, "n"]] | None = None,
) -> Float[Tensor, ""]:
    """1 - cos for two images of one class, max(cos - margin, 0) for two of different classes.

    [He 2021, contrastive feature learning]. The sum over all pairs, an image with itself included, divided by
    the number of pairs (the paper, and its code since a correction), or with per="image" by the number of
    images (the code before). Inputs are normalised here. Images without a label (-1) are left out; without
    labels the loss is 0. everyone: features and labels of all processes' images; by default x and labels.
    """
    others, their_labels = (x, labels) if everyone is None else everyone
    x, others = F.normalize(x.float(), dim=-1), F.normalize(others.float(), dim=-1)
    cos = x @ others.T
    same = labels[:, None] == their_labels
    pairs = torch.where(same, 1 - cos, (cos - margin).clamp(min=0))
    mine, theirs = labels >= 0, their_labels >= 0
    total = torch.where(mine[:, None] & theirs, pairs, torch.zeros_like(pairs)).sum()
    count = mine.sum() * (theirs.sum() if per == "pair" else 1)
    return total / count.clamp(min=1)
