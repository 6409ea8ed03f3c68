"""Contrastive losses between two views of the same images, or images and their texts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def ntxent(
    views: Sequence[Float[Tensor, "b d"]],
    temperature: float,
    everyone: Sequence[Float[Tensor, "n d"]] | None = None,
    offset: int = 0,
    excluded: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, ""]:
    """NT-Xent: each view of an image against all views of all others [Chen 2020, eq. 1].

    Of more than two views, each pair of an image's is contrasted by itself: its other views are neither
    positives nor negatives of the pair. `everyone`: the same views of all processes' images, of which this
    process's begin at row `offset`; by default `views`. excluded: pairs of images that are no negatives of
    each other (an image's own views are one, whatever stands there). Inputs are normalised here. An image
    without negatives gives 0.
    """
    own, others = ([F.normalize(x.float(), dim=-1) for x in each] for each in (views, everyone or views))
    v, n, b = len(own), len(others[0]), len(own[0])
    logits = torch.cat(own) @ torch.cat(others).T / temperature  # [vb, vn]
    rows, view = torch.arange(v * b, device=logits.device) % b, torch.arange(v, device=logits.device)
    columns = offset + rows[:, None] + n * view  # of the image's own views: [vb, v]
    positives = logits.gather(1, columns)
    if excluded is not None:
        logits = logits.masked_fill(excluded.repeat(v, v), float("-inf"))
    negatives = logits.scatter(1, columns, float("-inf"))
    pairs = []
    for k in range(1, v):  # the view that comes k places after
        other = ((view.repeat_interleave(b) + k) % v)[:, None]
        column = columns.gather(1, other)
        pair = negatives.scatter(1, column, positives.gather(1, other))
        pairs.append(F.cross_entropy(pair, column[:, 0]))
    return torch.stack(pairs).mean()


def infonce(
    q: Float[Tensor, "b d"], keys: Float[Tensor, "n d"], temperature: float, offset: int = 0
) -> Float[Tensor, ""]:
    """InfoNCE: query i against all keys, with key `offset` + i as its own.

    [van den Oord 2018, arXiv 1807.03748]. Inputs are normalised here. A single key gives 0.
    """
    logits = F.normalize(q.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(q), device=q.device) + offset)


def infonce_queue(
    q: Float[Tensor, "b d"], k: Float[Tensor, "b d"], queue: Float[Tensor, "n d"], temperature: float
) -> Float[Tensor, ""]:
    """Each query's own key against keys of earlier batches [He 2019, arXiv 1911.05722, eq. 1 and alg. 1]."""
    q, k = F.normalize(q.float(), dim=-1), F.normalize(k.float(), dim=-1)
    own = (q * k).sum(-1, keepdim=True)
    logits = torch.cat([own, q @ F.normalize(queue.float(), dim=-1).T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def alignment(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean squared distance between normalised views, in [0, 4] [Wang 2020, arXiv 2005.10242]."""
    return (F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)).square().sum(-1).mean()


def uniformity(x: Float[Tensor, "b d"], t: float = 2.0) -> Float[Tensor, ""]:
    """log mean exp(-t ||x_i - x_j||^2) over pairs i < j, at most 0 [Wang 2020]; 0 for a single row."""
    x = F.normalize(x.float(), dim=-1)
    if len(x) < 2:
        return x.new_zeros(())
    distance = (2 - 2 * x @ x.T).clamp(min=0)
    row, column = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return distance[row, column].mul(-t).exp().mean().log()


def clip(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    scale: float | Float[Tensor, ""],
    everyone: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    """Cross-entropy of each image's text among all texts and of each text's image, over scaled cosines.

    [Radford 2021, arXiv 2103.00020, figure 3]. scale: exp(t). everyone: images and texts of all processes, of
    which this process's begin at row `offset`; by default its own. Inputs are normalised here. A single pair
    gives 0.
    """
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    images, texts = (image, text) if everyone is None else (F.normalize(x.float(), dim=-1) for x in everyone)
    own = torch.arange(len(image), device=image.device) + offset
    of_images = F.cross_entropy(scale * image @ texts.T, own)
    return (of_images + F.cross_entropy(scale * text @ images.T, own)) / 2


def siglip(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    scale: float | Float[Tensor, ""],
    bias: float | Float[Tensor, ""],
    everyone: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    """Binary classification of every image and text as a pair or not, by a sigmoid.

    -1/b sum_ij log sigmoid(z_ij (scale cos(x_i, y_j) + bias)), z_ij = 1 for a pair and -1 otherwise [Zhai
    2023, arXiv 2303.15343, eq. 2]. everyone: texts of all processes, of which this process's begin at row
    `offset`; by default its own. Inputs are normalised here.
    """
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    texts = text if everyone is None else F.normalize(everyone.float(), dim=-1)
    logits = scale * image @ texts.T + bias
    own = torch.arange(len(image), device=image.device)
    sign = torch.full_like(logits, -1.0)
    sign[own, own + offset] = 1.0
    return -F.logsigmoid(sign * logits).sum(1).mean()
