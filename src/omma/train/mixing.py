"""Mixup [Zhang 2017, arXiv 1710.09412] and CutMix [Yun 2019, arXiv 1905.04899] of neighbours in a batch.

Images 2i and 2i + 1 are mixed with each other, with the same share and box, drawn from the Key of image 2i;
an odd last image is not mixed. Since the order of images is random, so are these pairs; and they do not
change when a batch is split into even shards or micro-batches, which therefore give the same result. (timm's
`pair` mode pairs the first image with the last, which depends on the length.)
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int64, Shaped
from scipy.special import betaincinv
from torch import Tensor

from omma.core.protocols import Key
from omma.core.random import uniform


class Mix(NamedTuple):
    """How each of p pairs is mixed."""

    share: Float32[np.ndarray, "p"]  # of the image itself, in pixels and label; the rest is its partner's
    box: Int64[np.ndarray, "p 4"]  # top, left, bottom, right of the exchanged box; 0: pixels are blended


def beta(u: Float32[np.ndarray, "p"], alpha: float) -> Float32[np.ndarray, "p"]:
    """Beta(alpha, alpha) variates from numbers of `uniform`, by the inverse of the distribution function."""
    # uniform numbers are multiples of 2^-24, rounded down: the middle of each step keeps shares symmetric
    return betaincinv(alpha, alpha, u.astype(np.float64) + 2.0**-25).astype(np.float32)


def draw(
    key: Key, stream: int, height: int, width: int, *, mixup: float, cutmix: float, p: float, switch: float
) -> Mix:
    """Mix each pair of neighbours with probability `p`, by CutMix with probability `switch`, else by mixup.

    mixup, cutmix: alpha of the share's Beta(alpha, alpha); 0 turns one off. CutMix's box has 1 - share of the
    area before it is clipped at the border; the share is then computed again.
    """
    pairs = len(key.index) // 2
    first = Key(key.seed, key.epoch[0 : 2 * pairs : 2], key.index[0 : 2 * pairs : 2])
    u = uniform(first, stream, 5)
    chance = switch if mixup and cutmix else float(bool(cutmix))
    cuts, mixed = u[:, 1] < chance, (u[:, 0] < p) & bool(mixup or cutmix)
    share = np.ones(pairs, np.float32)
    for which, alpha in ((cuts, cutmix), (~cuts, mixup)):
        if alpha:
            share = np.where(mixed & which, beta(u[:, 4], alpha), share)
    box = np.zeros((pairs, 4), np.int64)
    ratio = np.sqrt(1 - share.astype(np.float64))
    for axis, side in enumerate((height, width)):
        cut = (side * ratio).astype(np.int64)
        centre = np.floor(u[:, 2 + axis] * side).astype(np.int64)
        box[:, axis] = np.clip(centre - cut // 2, 0, side)
        box[:, 2 + axis] = np.clip(centre + (cut + 1) // 2, 0, side)
    box *= (mixed & cuts)[:, None]
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    share = np.where(mixed & cuts, 1 - area / (height * width), share).astype(np.float32)
    return Mix(share, box)


def partners(x: Shaped[Tensor, "b *d"]) -> Shaped[Tensor, "b *d"]:
    """Each image's partner in its pair; an odd last image is its own."""
    even = len(x) // 2 * 2
    swapped = x[:even].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.cat([swapped, x[even:]])


def mixed(
    images: Float[Tensor, "b c h w"],
    targets: Float[Tensor, "b k"],
    mix: Mix,
    mixable: Bool[Tensor, "b"] | None = None,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """Images and soft targets, each mixed with its partner's.

    mixable: pairs are mixed only if both images are.
    """
    b, _, h, w = images.shape
    device = images.device
    share = torch.from_numpy(np.concatenate([mix.share.repeat(2), np.ones(b % 2, np.float32)])).to(device)
    box = np.concatenate([mix.box.repeat(2, 0), np.zeros((b % 2, 4), np.int64)])
    box = torch.from_numpy(box).to(device)[:, :, None]
    rows, columns = torch.arange(h, device=device), torch.arange(w, device=device)
    vertical = (rows >= box[:, 0]) & (rows < box[:, 2])
    horizontal = (columns >= box[:, 1]) & (columns < box[:, 3])
    inside = (vertical[:, :, None] & horizontal[:, None, :])[:, None]
    blended = torch.where(box[:, 2] > 0, 1.0, share[:, None])[:, :, None, None]
    own = torch.where(inside, 0.0, blended)  # each pixel's weight of the image itself
    if mixable is not None:
        unmixed = ~(mixable & partners(mixable))
        share, own = share.masked_fill(unmixed, 1.0), own.masked_fill(unmixed[:, None, None, None], 1.0)
    images = torch.lerp(partners(images), images, own.to(images.dtype))
    return images, torch.lerp(partners(targets), targets, share[:, None].to(targets.dtype))


def smoothed(labels: Int[Tensor, "b"], classes: int, smoothing: float = 0.0) -> Float[Tensor, "b k"]:
    """One-hot targets with label smoothing [Szegedy 2015, arXiv 1512.00567].

    1 - s + s / K for the label, s / K for the others. Unlabelled images (-1) get zeros.
    """
    labelled = (labels >= 0).float()[:, None]
    one_hot = F.one_hot(labels.clamp(min=0), classes).float()
    return labelled * (one_hot * (1 - smoothing) + smoothing / classes)
