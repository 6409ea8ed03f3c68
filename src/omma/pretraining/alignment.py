"""Are two views of one image nearer to each other than to other images? Read without labels."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.protocols import Crop, Key
from omma.core.random import Stream, uniform
from omma.data.batches import augment

# The same for all methods and numbers of channels, whatever a method's own views are
SCALE = (0.3, 1.0)  # share of the image's area that is cropped
RIDGE = 0.1
Z99 = 2.576  # normal deviations on both sides of the mean that hold 99 %
GAIN, SHIFT = 0.4, 0.4  # of each channel: factor in 1 -+ .4, shift in -+ .4 standard deviations


def view(pixels: Float[Tensor, "n c s s"], seed: int, number: int) -> Float[Tensor, "n c s s"]:
    """View `number` of normalised images: a crop, perhaps mirrored, each channel brighter or darker."""
    n, c, _, size = pixels.shape
    key = Key(seed, np.full(n, number), np.arange(n))
    (crops,) = augment.cut_batch(pixels, (Crop(size=size, scale=SCALE),), key)
    draws = torch.from_numpy(uniform(key, Stream.COLOUR, 2 * c)).view(n, 2, c, 1, 1)
    gain, shift = (1 + GAIN * (2 * draws[:, 0] - 1)), SHIFT * (2 * draws[:, 1] - 1)
    return crops[:, 0] * gain + shift


def view_auc(one: Float[Tensor, "n d"], two: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """For each image: the share of other images that are farther from one view than the other view is.

    Mean over both directions, by cosine of whitened features, so that no few large directions hide the
    others: .5 is chance (and what equal features have), 1 is perfect. NaN if a feature is not finite.
    """
    if not (one.isfinite().all() and two.isfinite().all()):
        return torch.full((len(one),), torch.nan, dtype=torch.float64)
    one, two = (torch.nn.functional.normalize(x, dim=1) for x in _whitened(one, two))
    similarity, others = one @ two.T, len(one) - 1
    own = similarity.diagonal()[:, None]
    shares = [
        ((s < own).sum(1) + 0.5 * ((s == own).sum(1) - 1)) / max(others, 1)
        for s in (similarity, similarity.T)
    ]
    return (shares[0] + shares[1]) / 2


def _whitened(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Features of both views, centred and scaled along their principal directions, in fp64.

    A tenth of the mean variance is added to each direction's, or the smallest would be noise alone.
    """
    both = torch.cat([one, two]).double()
    both = both - both.mean(0)
    _, singular, directions = torch.linalg.svd(both, full_matrices=False)
    variance = singular.square()
    floor = (RIDGE * variance.mean()).clamp(min=torch.finfo(torch.float32).tiny)
    white = both @ (directions.T / (variance + floor).sqrt())
    return white[: len(one)], white[len(one) :]


def change(now: Float[Tensor, "n"], start: Float[Tensor, "n"]) -> tuple[float, float]:
    """99 % interval of the mean change of `view_auc`, paired over the images; at least two."""
    difference = now.double() - start.double()
    mean, half = difference.mean(), Z99 * difference.std(correction=0) / len(difference) ** 0.5
    return float(mean - half), float(mean + half)
