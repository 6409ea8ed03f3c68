"""Draw each view's colour changes, and apply them to tensors on any device."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from omma.core.protocols import Colour, Key
from omma.core.random import Stream, uniform
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
    )


def apply_colour(
    images: Float[Tensor, "n c h w"], setting: Colour, draws: ColourDraws
) -> Float[Tensor, "n c h w"]:
    """Jitter, grey, blur and solarise, in this order, each on the images for which it was drawn."""
    rgb = images.shape[1] == 3

    def jitter(x: Tensor, rows: np.ndarray) -> Tensor:
        if setting.brightness:
            colour.brightness_(x, _to(draws.brightness[rows], x))
        if setting.contrast:
            colour.contrast_(x, _to(draws.contrast[rows], x))
        if setting.saturation and rgb:
            colour.saturation_(x, _to(draws.saturation[rows], x))
        if setting.hue and rgb:
            colour.hue_(x, _to(draws.hue[rows], x))
        return x

    images = _where(images, draws.jitter, jitter)
    if rgb:
        images = _where(images, draws.grey, lambda x, rows: colour.grey_(x))
    images = _where(images, draws.sigma > 0, lambda x, rows: gaussian_blur(x, draws.sigma[rows]))
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
