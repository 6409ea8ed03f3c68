"""The Kozachenko-Leonenko entropy estimator as a regulariser [Sablayrolles 2018, arXiv 1806.03198]."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from omma.ops.directions import upcast


def koleo(
    x: Float[Tensor, "n d"], everyone: Float[Tensor, "m d"] | None = None, offset: int = 0, eps: float = 1e-8
) -> Float[Tensor, ""]:
    """-mean log of the distance of each L2-normalised row to its nearest neighbour [Oquab 2023, section 4].

    `everyone`: the rows of all processes, of which this process's begin at row `offset`; by default x.
    In fp32 or better. 0 for a single row, which has no neighbour.
    """
    x = F.normalize(upcast(x), dim=-1, eps=eps)
    others = x if everyone is None else F.normalize(upcast(everyone), dim=-1, eps=eps)
    if len(others) < 2:
        return (x * 0).sum()
    with torch.no_grad():
        cosine = x @ others.T
        rows = torch.arange(len(x), device=x.device)
        cosine[rows, rows + offset] = -2.0
        nearest = cosine.argmax(1)
    # eps in the difference, as in the published code, gives the norm a gradient where two rows are equal
    distance = (x - others[nearest] + eps).norm(dim=-1)
    return -(distance + eps).log().mean()
