"""Random erasing: a rectangle of noise in a normalised image [Zhong 2017, arXiv 1708.04896].

As DeiT has it by timm: `pixel` noise, area .02 to 1/3 of the image, aspect .3 to 1 / .3, ten tries to fit.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from omma.ops.random import derive, uniform
from omma.protocols import Key

AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)
_TRIES = 10


def draw(key: Key, stream: int, p: float, views: int, size: int) -> Int64[np.ndarray, "b v 4"]:
    """Rectangles (top, left, height, width), without height where nothing is erased."""
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
        np.floor(u[..., place] * (size - side + 1)).astype(np.int64) for place, side in ((-3, h), (-2, w))
    )
    erased = fits.any(-1) & (u[..., -1] < p)
    return np.stack([top, left, h, w], -1) * erased[..., None]


def erase_(
    views: Float[Tensor, "b v c s s"], boxes: Int64[np.ndarray, "b v 4"], key: Key, stream: int
) -> Float[Tensor, "b v c s s"]:
    """Standard normal numbers in the rectangles, one for each pixel and channel, in place."""
    for view in range(views.shape[1]):
        rows = np.flatnonzero(boxes[:, view, 2] * boxes[:, view, 3])
        if not len(rows):
            continue
        at = torch.from_numpy(rows).to(views.device)
        top, left, height, width = torch.from_numpy(boxes[rows, view]).to(views.device)[:, :, None].unbind(1)
        images = views[:, view].index_select(0, at)
        place = torch.arange(images.shape[-1], device=views.device)
        inside = ((place >= top) & (place < top + height))[:, None, :, None]
        inside = inside & ((place >= left) & (place < left + width))[:, None, None, :]
        of_it = Key(derive(key.seed, stream, view), key.epoch[rows], key.index[rows])
        filled = noise(of_it, images[0].numel(), views.device).view_as(images)
        views[:, view].index_copy_(0, at, torch.where(inside, filled.to(images.dtype), images))
    return views


# [Salmon 2011, section 3.3], as in ops/random.py
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def noise(key: Key, n: int, device: torch.device) -> Float[Tensor, "b n"]:
    """n standard normal numbers for each image: those of `random.normal` in stream 0, made on the device.

    The words are uint32 in int64, whose products wrap to the right 64 bits. A stream's limit does not hold:
    blocks have the counter's whole first word, so give a seed of their own.
    """
    blocks = -(-n // 4)
    epoch, index = (np.asarray(v, np.int64)[:, None] for v in (key.epoch, key.index))
    epoch, index = torch.from_numpy(epoch).to(device), torch.from_numpy(index).to(device)
    zero = torch.zeros(len(key.index), blocks, dtype=torch.int64, device=device)
    c0, c1 = torch.arange(blocks, device=device) + zero, (epoch & _LOW) + zero
    c2, c3 = (index & _LOW) + zero, ((index >> 32) & _LOW) + zero
    k0, k1 = key.seed & _LOW, (key.seed >> 32) & _LOW
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c2 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, ((p0 >> 32) & _LOW) ^ c3 ^ k1
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    u = [(c >> 8).float() * 2.0**-24 for c in (c0, c1, c2, c3)]
    pairs = []
    for one, two in ((u[0], u[1]), (u[2], u[3])):  # Box and Muller's; 1 - u is in (0, 1]
        radius, angle = (-2 * (1 - one).log()).sqrt(), 2 * math.pi * two
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(pairs, -1).flatten(1)[:, :n]
