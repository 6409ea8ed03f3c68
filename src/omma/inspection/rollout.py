"""Attention rollout: how much of each patch reaches the feature, layer by layer [Abnar 2020, 2005.00928]."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.backbones.adapters.transfg import Parts
from omma.core.protocols import Backbone, NoAttention
from omma.inspection import attention
from omma.inspection.kinds import Explanation, Kind, Subject


def rollout(
    maps: Iterable[Float[Tensor, "b heads q m"]], start: Float[Tensor, "b r n"]
) -> Float[Tensor, "b r n"]:
    """Rows `start` times prod_l (.5 mean_h A_l + .5 I), from the last layer to the first.

    [Abnar 2020, section 3]. maps: softmax weights, the last layer's first; a map with one query (a class
    layer) leaves all tokens but the first as they are, one over fewer tokens all but the last of them. Rows
    are divided by their sums, which are 1 but for what an adapter's prompts take. With the identity as
    `start` the result is the whole matrix; its rows sum to 1 as those of `start` do. Computed in the
    precision of `start`; n^2 products a row and layer.
    """
    rows = start
    for each in maps:
        mean = each.to(rows.dtype).mean(1)
        mean = mean / mean.sum(-1, keepdim=True)
        queries, keys = mean.shape[-2:]
        if queries == 1 < keys:  # A = I but for the first row
            moved = rows.clone()
            moved[..., 0] = 0
            rows = 0.5 * rows + 0.5 * (rows[..., :1] * mean + moved)
        elif keys < rows.shape[-1]:  # a trunk that does not see the class token
            first = rows.shape[-1] - keys
            rows = torch.cat(
                [rows[..., :first], 0.5 * rows[..., first:] @ mean + 0.5 * rows[..., first:]], -1
            )
        else:
            rows = 0.5 * rows @ mean + 0.5 * rows
    return rows


def pooled_rollout(encoder: Backbone, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b gh gw"]:
    """How much of each patch reaches the pooled feature: the class token's row, or the mean of the patches'.

    The share that comes from the prefix tokens themselves is cut off. TransFG's last layer is left out, since
    it receives a few chosen patches. Raises NoAttention for a network without attention, and for one whose
    layers have different tokens (Swin), to which no product of their maps applies.
    """
    if encoder.hierarchical:
        raise NoAttention(
            f"{encoder.name} merges its tokens on the way, so that its layers' maps have no product"
        )
    grid = encoder.grid(*images.shape[-2:])
    layers = list(range(len(encoder.repeated())))
    if isinstance(encoder, Parts):
        layers = layers[:-1]
    if not layers:
        raise NoAttention(f"{encoder.name} has no layers of attention weights")
    prefix, patches = encoder.prefix, grid[0] * grid[1]
    start = images.new_zeros(len(images), 1, prefix + patches, dtype=torch.float32)
    if encoder.pool == "token":
        start[..., 0] = 1
    else:
        start[..., prefix:] = 1 / patches
    rows = rollout(encoder.attention(images, layers[::-1]), start)
    return rows[:, 0, prefix:].unflatten(-1, grid)


@torch.no_grad()
def one_map(subject: Subject) -> Float[np.ndarray, "n gh gw"]:
    """The rollout of each image."""
    rows, columns = subject.grid
    numbers = len(subject.encoder.repeated()) * 16 * (rows * columns + subject.encoder.prefix) ** 2
    step = max(1, min(subject.batch, attention.LIMIT // max(numbers, 1)))
    parts = [pooled_rollout(subject.encoder, pixels).cpu() for pixels in subject.pixels.split(step)]
    return torch.cat(parts).numpy()


def lacks(subject: Subject) -> str | None:
    """Why there is no rollout."""
    try:
        one_map(subject.only([0]))
    except NoAttention as error:
        return str(error)
    return None


def explain(subject: Subject) -> Explanation:
    """The rollout over all layers."""
    found = one_map(subject)
    caption = (
        "How much of each patch reaches the feature if every layer passes half on by attention (mean over "
        "its heads) and half as it was: the product over all layers [Abnar 2020]. It is the same for every "
        "class. What comes from class token and registers is cut off. Colours as for attention."
    )
    shows = attention.over_images(subject, ("rollout",), [found])
    return Explanation("Attention rollout", caption, (shows,), {"rollout": found})


KIND = Kind(name="rollout", explain=explain, lacks=lacks, one_map=one_map, default=True)
