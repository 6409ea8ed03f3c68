"""Random erasing: a rectangle of noise in a normalised image [Zhong 2017, arXiv 1708.04896].

As in DeiT and timm: `pixel` noise, area .02 to 1/3 of the image, aspect .3 to 1 / .3, ten tries to fit.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from omma.core.protocols import Key
from omma.core.random import derive, fill, uniform

AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)
_TRIES = 10


def draw(key: Key, stream: int, p: float, views: int, size: int) -> Int64[np.ndarray, "b v 4"]:
    """Rectangles (top, left, height, width); all zero for a view that is not erased."""
    u = uniform(key, stream, views * (2 * _TRIES + 3)).reshape(len(key.index), views, -1).astype(np.float64)
    low, high = (math.log(r) for r in ASPECT)
    area = size * size * (AREA[0] + (AREA[1] - AREA[0]) * u[..., :_TRIES])
    ratio = np.exp(low + (high - low) * u[..., _TRIES : 2 * _TRIES])
    h = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    w = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (h < size) & (w < size)
    first = fits.argmax(-1)[..., None]
    h, w = (np.take_along_axis(side, first, -1)[..., 0] for side in (h, w))
    top, left = (
        np.floor(u[..., column] * (size - side + 1)).astype(np.int64) for column, side in ((-3, h), (-2, w))
    )
    erased = fits.any(-1) & (u[..., -1] < p)
    return np.stack([top, left, h, w], -1) * erased[..., None]


def erase_(
    views: Float[Tensor, "b v c s s"], boxes: Int64[np.ndarray, "b v 4"], key: Key, stream: int
) -> Float[Tensor, "b v c s s"]:
    """Fill the rectangles with standard normal noise for each pixel and channel, in place."""
    for view in range(views.shape[1]):
        rows = np.flatnonzero(boxes[:, view, 2] * boxes[:, view, 3])
        if not len(rows):
            continue
        at = torch.from_numpy(rows).to(views.device)
        top, left, height, width = torch.from_numpy(boxes[rows, view]).to(views.device)[:, :, None].unbind(1)
        images = views[:, view].index_select(0, at)
        pixel = torch.arange(images.shape[-1], device=views.device)
        inside = ((pixel >= top) & (pixel < top + height))[:, None, :, None]
        inside = inside & ((pixel >= left) & (pixel < left + width))[:, None, None, :]
        view_key = Key(derive(key.seed, stream, view), key.epoch[rows], key.index[rows])
        noise = fill(view_key, 0, images.shape[1:], views.device, Tensor.normal_)
        views[:, view].index_copy_(0, at, torch.where(inside, noise.to(images.dtype), images))
    return views
