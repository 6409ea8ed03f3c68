"""Draw each view's colour changes, and apply them to tensors on any device."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from omma.core.protocols import Colour, Key
from omma.core.random import Stream, bits, uniform
from omma.data.pixels import colour
from omma.data.pixels.resize import gaussian_blur


class ColourDraws(NamedTuple):
    """Colour parameters of each view; for an operation that was not drawn, flag False or sigma 0."""

    jitter: Bool[np.ndarray, "n"]
    brightness: Float32[np.ndarray, "n"]
    contrast: Float32[np.ndarray, "n"]
    saturation: Float32[np.ndarray, "n"]
    hue: Float32[np.ndarray, "n"]
    grey: Bool[np.ndarray, "n"]
    sigma: Float32[np.ndarray, "n"]
    solarise: Bool[np.ndarray, "n"]
    order: Int64[np.ndarray, "n 4"]  # of brightness, contrast, saturation and hue: 0 to 3


def draw_colour(key: Key, setting: Colour, count: int, crop_number: int) -> ColourDraws:
    """Colour parameters for `count` views of each image, image by image (n = b v)."""
    u = uniform(key, Stream.COLOUR + crop_number, count * 9).reshape(-1, 9)

    def factor(column: int, strength: float) -> np.ndarray:
        low = max(0.0, 1 - strength)
        return (low + (1 + strength - low) * u[:, column]).astype(np.float32)

    low, high = setting.blur_sigma
    return ColourDraws(
        jitter=u[:, 0] < setting.jitter_p,
        brightness=factor(1, setting.brightness),
        contrast=factor(2, setting.contrast),
        saturation=factor(3, setting.saturation),
        hue=((2 * u[:, 4] - 1) * setting.hue).astype(np.float32),
        grey=u[:, 5] < setting.grey_p,
        sigma=np.where(u[:, 6] < setting.blur_p, low + (high - low) * u[:, 7], 0).astype(np.float32),
        solarise=u[:, 8] < setting.solarise_p,
        order=_orders(key, setting, count, crop_number),
    )


def _orders(key: Key, setting: Colour, count: int, crop_number: int) -> Int64[np.ndarray, "n 4"]:
    """The order of the four changes for each view: a permutation, each as likely as any other."""
    if setting.jitter_order == "fixed":
        return np.tile(np.arange(4), (len(key.index) * count, 1))
    words = bits(key, Stream.ORDER + crop_number, count * 4).reshape(-1, 4)
    return np.argsort(words, axis=1, kind="stable").astype(np.int64, copy=False)


def apply_colour(
    images: Float[Tensor, "n c h w"], setting: Colour, draws: ColourDraws
) -> Float[Tensor, "n c h w"]:
    """Jitter, grey, blur and solarise, in this order, each on the images for which it was drawn."""
    rgb = images.shape[1] == 3
    changes = (
        (colour.brightness_, draws.brightness, setting.brightness > 0),
        (colour.contrast_, draws.contrast, setting.contrast > 0),
        (colour.saturation_, draws.saturation, setting.saturation > 0 and rgb),
        (colour.hue_, draws.hue, setting.hue > 0 and rgb),
    )

    def jitter(x: Tensor, rows: np.ndarray) -> Tensor:
        for place in range(4):
            for number, (change_, values, on) in enumerate(changes):
                if on:
                    mine, here = values[rows], draws.order[rows, place] == number
                    x = _where(x, here, lambda y, at, f=change_, v=mine: f(y, _to(v[at], y)))
        return x

    images = _where(images, draws.jitter, jitter)
    if rgb:
        images = _where(images, draws.grey, lambda x, rows: colour.grey_(x))

    def blur(x: Tensor, rows: np.ndarray) -> Tensor:
        return gaussian_blur(
            x, draws.sigma[rows], setting.blur_kernel, setting.blur_border, setting.blur_radius
        )

    images = _where(images, draws.sigma > 0, blur)
    return _where(images, draws.solarise, lambda x, rows: colour.solarise_(x))


def _where(images: Tensor, drawn: np.ndarray, operation: Callable[[Tensor, np.ndarray], Tensor]) -> Tensor:
    """Apply `operation(images, rows)` to the rows where `drawn`; consecutive rows are not copied."""
    rows = np.flatnonzero(drawn)
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return operation(images, rows)
    if rows[-1] - rows[0] + 1 == len(rows):  # consecutive: a slice
        view = images[rows[0] : rows[-1] + 1]
        result = operation(view, rows)
        if result is not view:
            view.copy_(result)
        return images
    at = torch.from_numpy(rows).to(images.device)
    return images.index_copy_(0, at, operation(images.index_select(0, at), rows))


def _to(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype)
