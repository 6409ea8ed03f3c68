"""Contrastive losses between two views of the same images."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def ntxent(
    a: Float[Tensor, "b d"],
    b: Float[Tensor, "b d"],
    temperature: float,
    everyone: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    """NT-Xent over 2b anchors, in both directions, each against all others [Chen 2020, eq. 1].

    `everyone`: the two views of all processes' images, of which this process's begin at row `offset`;
    by default a and b. Anything that is not normalised is. With one image in all it is 0.
    """
    a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    rows = torch.arange(len(a), device=a.device)
    if everyone is None:
        all_a, all_b = a, b
    else:
        all_a, all_b = (F.normalize(x.float(), dim=-1) for x in everyone)
    n = len(all_a)
    logits = torch.cat([a, b]) @ torch.cat([all_a, all_b]).T / temperature  # [2b, 2n]
    same = torch.cat([rows + offset, rows + offset + n])
    other = torch.cat([rows + offset + n, rows + offset])
    logits = logits.scatter(1, same[:, None], float("-inf"))
    return F.cross_entropy(logits, other)


def alignment(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean squared distance between the normalised views, in [0, 4] [Wang 2020, arXiv 2005.10242]."""
    return (F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)).square().sum(-1).mean()


def uniformity(x: Float[Tensor, "b d"], t: float = 2.0) -> Float[Tensor, ""]:
    """log mean exp(-t ||x_i - x_j||^2) over pairs i < j, at most 0 [Wang 2020]; 0 for a single row."""
    x = F.normalize(x.float(), dim=-1)
    if len(x) < 2:
        return x.new_zeros(())
    distance = (2 - 2 * x @ x.T).clamp(min=0)
    row, column = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return distance[row, column].mul(-t).exp().mean().log()
