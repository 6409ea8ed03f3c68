"""Where a transformer's layers look: softmax weights of the row that the pooled feature is read from."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.backbones import external
from omma.backbones.adapters.attentive import Attending
from omma.backbones.adapters.transfg import Parts
from omma.core.protocols import Backbone, NoAttention
from omma.inspection.kinds import Explanation, Heat, Kind, Rows, Subject
from omma.ops.statistics import entropy

HEADS = 6  # drawn where none are asked for: those with the lowest entropy
LIMIT = 1 << 26  # numbers in the attention maps that exist at a time (256 MB)


def attention(
    encoder: Backbone, images: Float[Tensor, "b c h w"], layer: int = -1
) -> Float[Tensor, "b heads gh gw"]:
    """Each head's attention to each patch in one layer, as the pooled feature sees it.

    That is the class token's row; where the feature is the mean of the patches, the mean of their rows.
    Prefix tokens (class token, registers) are cut off, so sums are at most 1. A hierarchical network's early
    layers have a finer grid. Raises NoAttention, and ValueError for a layer that does not exist.
    """
    if layer == -1 and isinstance(encoder, Parts):  # whose last layer sees the chosen patches only
        return encoder.pooled_attention(images).unflatten(-1, encoder.grid(*images.shape[-2:]))
    (weights,) = encoder.attention(images, [layer])
    if layer == -1 and isinstance(encoder, external.Encoder):  # non-local blocks, which may pool their keys
        return encoder.pooled_attention(images).unflatten(-1, encoder.grid(*images.shape[-2:]))
    queries, keys = weights.shape[-2:]
    front = _front(keys, encoder, images)
    to_patches = weights[..., front:]
    if queries == 1 or (encoder.pool == "token" and front):
        rows = to_patches[:, :, 0]
    else:
        rows = to_patches[:, :, front if queries == keys else 0 :].mean(2)
    return rows.unflatten(-1, grid_of(keys - front, images))


def _front(tokens: int, encoder: Backbone, images: Tensor) -> int:
    """How many of a layer's tokens come before the patches."""
    rows, columns = encoder.grid(*images.shape[-2:])
    beside = tokens - rows * columns
    return beside if 0 < beside <= encoder.prefix else 0


def grid_of(tokens: int, images: Float[Tensor, "b c h w"]) -> tuple[int, int]:
    """Rows and columns of so many patches: of all divisors, those nearest to the images' proportions."""
    height, width = images.shape[-2:]
    wanted = np.log(height / width)
    rows = min(
        (r for r in range(1, tokens + 1) if tokens % r == 0),
        key=lambda r: abs(np.log(r * r / tokens) - wanted),
    )
    return rows, tokens // rows


def pooling(encoder: Backbone, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads gh gw"] | None:
    """The weights of an attentive pooling over the patches; None for a network that has none."""
    if not isinstance(encoder, Attending):
        return None
    features = encoder(images)
    return encoder.attentive.weights(features.patches).unflatten(-1, features.grid)


@torch.no_grad()
def maps(subject: Subject, layer: int) -> Float[np.ndarray, "n heads gh gw"]:
    """The same for all images of a subject, with the pooling's own weights in place of the last layer's."""
    parts = []
    for pixels in subject.pixels.split(_step(subject)):
        found = pooling(subject.encoder, pixels) if layer == -1 else None
        parts.append((attention(subject.encoder, pixels, layer) if found is None else found).float().cpu())
    return torch.cat(parts).numpy()


def _step(subject: Subject) -> int:
    """Images at a time, so that maps stay small; the finest grid that a layer may have is that of tokens."""
    patch = subject.encoder.token_patch
    tokens = (subject.size[0] // patch + 1) * (subject.size[1] // patch + 1)
    return max(1, min(subject.batch, LIMIT // (16 * tokens**2)))


def focused(heads: Float[np.ndarray, "n heads gh gw"], most: int) -> list[int]:
    """The heads with the lowest mean entropy over the patches, in ascending order."""
    flat = torch.from_numpy(heads).flatten(2).double()
    share = flat / flat.sum(-1, keepdim=True).clamp(min=1e-12)
    order = entropy(share).mean(0).argsort(stable=True)
    return sorted(order[:most].tolist())


def lacks(subject: Subject) -> str | None:
    """Why there is no attention to be seen."""
    try:
        with torch.no_grad():
            if pooling(subject.encoder, subject.pixels[:1]) is None:
                subject.encoder.attention(subject.pixels[:1], [-1])
    except NoAttention as error:
        return str(error)
    return None


def one_map(subject: Subject) -> Float[np.ndarray, "n gh gw"]:
    """The mean over heads, of the last of the layers that are asked for."""
    return maps(subject, subject.layers[-1] if subject.layers else -1).mean(1)


def explain(subject: Subject) -> Explanation:
    """Each layer that is asked for: the mean over its heads, then single heads."""
    layers: Sequence[int] = subject.layers or (-1,)
    shows, arrays = [], {}
    for layer in layers:
        found = maps(subject, layer)
        for head in subject.heads:
            if not 0 <= head < found.shape[1]:
                raise ValueError(f"--heads {head}: layer {layer} has {found.shape[1]}, from 0")
        heads = subject.heads or focused(found, HEADS)
        name = "last layer" if layer == -1 else f"layer {layer}"
        names = (f"{name}, mean of {found.shape[1]} heads", *(f"head {head}" for head in heads))
        columns = [found.mean(1), *(found[:, head] for head in heads)]
        shows.append(over_images(subject, names, columns))
        arrays["attention" if layer == layers[-1] else f"attention.{layer}"] = found
    return Explanation("Attention", _caption(subject.encoder), tuple(shows), arrays)


def over_images(subject: Subject, heads: Sequence[str], columns: Sequence[np.ndarray]) -> Rows:
    """A row for each image: each column's map, drawn over it in colours from 0 to twice its mean or more."""

    def heat(values: np.ndarray, i: int) -> Heat:
        return Heat(values, i, top=max(float(values.max()), 2 * float(values.mean())))

    rows = (tuple(heat(column[i], i) for column in columns) for i in range(len(subject.pixels)))
    return Rows(tuple(heads), tuple(rows))


def _caption(encoder: Backbone) -> str:
    if isinstance(encoder, Attending):
        row = "the weights with which the pooling reads the patches"
    elif encoder.pool == "token":
        row = "the class token's weights on the patches"
    else:
        row = "the mean of all patches' weights, since the feature is the mean of the patches"
    return (
        f"Where a layer looks: {row}; what goes to class token and registers is cut off. It shows from where "
        "information is fetched, not what the answer rests on. The colours of a map run from 0 to its "
        "largest value, or to twice its mean if that is larger, so that even attention looks even."
    )


KIND = Kind(name="attention", explain=explain, lacks=lacks, one_map=one_map, default=True)
