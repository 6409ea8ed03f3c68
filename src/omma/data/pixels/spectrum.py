"""Level, spectrum and noise of log-mel images, changed at random; rows are frequencies."""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from omma.core.protocols import Key, Spectrum
from omma.core.random import derive, fill, uniform


def draw(key: Key, stream: int, setting: Spectrum, views: int) -> Float32[np.ndarray, "b v 4"]:
    """Level, slope, curvature and deviation of noise of each view."""
    u = uniform(key, stream, views * 7).reshape(len(key.index), views, 7).astype(np.float64)
    # Box-Muller [1958]: normally distributed numbers from pairs of uniform ones
    normal = np.sqrt(-2 * np.log1p(-u[..., :3])) * np.cos(2 * np.pi * u[..., 3:6])
    normal *= [setting.level, setting.tilt, setting.tilt]
    return np.concatenate([normal, setting.noise * u[..., 6:]], axis=-1).astype(np.float32)


def apply_(
    views: Float[Tensor, "b v c s s"], draws: Float32[np.ndarray, "b v 4"], key: Key, stream: int
) -> Float[Tensor, "b v c s s"]:
    """Add level + slope r + curvature (r^2 - 1/3) + noise in place; r: the row, from -1 to 1."""
    level, slope, curvature, noise = torch.from_numpy(draws).to(views).unbind(-1)
    row = torch.linspace(-1, 1, views.shape[-2], device=views.device, dtype=views.dtype)[:, None]

    def each(values: Tensor) -> Tensor:
        return values[..., None, None, None]

    views += each(level) + each(slope) * row + each(curvature) * (row.square() - 1 / 3)
    for view in range(views.shape[1]):
        view_key = Key(derive(key.seed, stream, view), key.epoch, key.index)
        drawn = fill(view_key, 0, views.shape[2:], views.device, Tensor.normal_)
        views[:, view].addcmul_(each(noise[:, view]), drawn.to(views.dtype))
    return views
