"""Pauses, loudness, spectrum and noise of log-mel images, changed at random.

Rows are frequencies, columns are times.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from omma.core.preprocess import Preprocess
from omma.core.protocols import Key, Spectrum
from omma.core.random import derive, fill, uniform

_DB = 10 / math.log(10)  # of a factor e in energy
_SPECKLE = 3.0  # dB: deviation of the noise's energies, each the mean of a few bins and frames


class Draws(NamedTuple):
    """What changes in each view."""

    pause: Float32[np.ndarray, "b v"]  # silence added, as a share of the view's time ...
    before: Float32[np.ndarray, "b v"]  # ... and how much of it comes first, in [0, 1]
    contrast: Float32[np.ndarray, "b v"]  # logarithm of the factor of the range
    level: Float32[np.ndarray, "b v"]  # dB, as the rest
    colour: Float32[np.ndarray, "b v 2"]  # slope and curvature of the spectrum
    noise_colour: Float32[np.ndarray, "b v 2"]
    snr: Float32[np.ndarray, "b v"]  # infinite: no noise

    def in_frames(self, frames: int) -> "Draws":
        """Alike in all frames of a view."""
        return Draws(*(np.repeat(values, frames, axis=1) for values in self))


def draw(key: Key, stream: int, setting: Spectrum, views: int) -> Draws:
    """By (seed, epoch, index), independent for each view."""
    u = uniform(key, stream, views * 17).reshape(len(key.index), views, 17).astype(np.float64)
    # Box-Muller [1958]: normally distributed numbers from pairs of uniform ones
    normal = np.sqrt(-2 * np.log1p(-u[..., :6])) * np.cos(2 * np.pi * u[..., 6:12])
    low, high = setting.snr
    drawn = Draws(
        pause=np.where(u[..., 12] < setting.pause_p, u[..., 13] * setting.pause, 0.0),
        before=u[..., 14],
        contrast=normal[..., 0] * setting.contrast,
        level=normal[..., 1] * setting.level,
        colour=normal[..., 2:4] * setting.tilt,
        noise_colour=normal[..., 4:] * setting.noise_tilt,
        snr=np.where(u[..., 15] < setting.noise_p, low + (high - low) * u[..., 16], np.inf),
    )
    return Draws(*(values.astype(np.float32) for values in drawn))


def apply_(
    views: Float[Tensor, "b v c s s"], draws: Draws, key: Key, stream: int, preprocess: Preprocess
) -> Float[Tensor, "b v c s s"]:
    """Change normalised log energies in place, in the order of `Draws`.

    A colour is slope r + curvature (r^2 - 1/3), where r is the row, from -1 to 1. The noise is added as
    energy, log(e^x + e^noise), and the SNR is that of mean energies.
    """
    device, dtype = views.device, views.dtype

    def each(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device, dtype)[..., None, None, None]

    def coloured(bends: Float32[np.ndarray, "b v 2"]) -> Float[Tensor, "b v 1 s 1"]:
        row = torch.linspace(-1, 1, views.shape[-2], device=device, dtype=dtype)[:, None]
        return each(bends[..., 0]) * row + each(bends[..., 1]) * (row.square() - 1 / 3)

    views.copy_(_with_pauses(views, each(draws.pause)[..., 0], each(draws.before)[..., 0]))
    mean = views.mean((-3, -2, -1), keepdim=True)
    views.sub_(mean).mul_(each(draws.contrast).exp()).add_(mean)
    unit = _nats(preprocess, views)
    energy = views * unit + (each(draws.level) + coloured(draws.colour)) / _DB
    loud = energy.flatten(2).logsumexp(-1)[..., None, None, None] - math.log(energy[0, 0].numel())
    noise = loud + (coloured(draws.noise_colour) - each(draws.snr)) / _DB
    for view in range(views.shape[1]):
        view_key = Key(derive(key.seed, stream, view), key.epoch, key.index)
        speckle = fill(view_key, 0, views.shape[2:], device, Tensor.normal_).to(dtype)
        drawn = noise[:, view] + speckle * (_SPECKLE / _DB)
        views[:, view] = torch.logaddexp(energy[:, view], drawn) / unit
    return views


def _with_pauses(
    views: Float[Tensor, "b v c s s"], pause: Float[Tensor, "b v 1 1"], before: Float[Tensor, "b v 1 1"]
) -> Float[Tensor, "b v c s s"]:
    """Each view pressed together in time, linearly, between stretches of each row's least energy."""
    s = views.shape[-1]
    column = torch.arange(s, device=views.device, dtype=views.dtype) + 0.5
    at = (column * (1 + pause) - before * pause * s - 0.5)[..., None, :]  # [b, v, 1, 1, s]
    inside = (at > -1) & (at < s)
    at = at.clamp(0, s - 1)
    left = at.floor().long().expand(*views.shape[:-1], s)
    share = at - at.floor()
    right = (left + 1).clamp_max(s - 1)
    pressed = views.gather(-1, left) * (1 - share) + views.gather(-1, right) * share
    return torch.where(inside, pressed, views.amin(-1, keepdim=True))


def _nats(preprocess: Preprocess, like: Tensor) -> Float[Tensor, "c 1 1"]:
    """Natural logarithms of energy in a normalised value of 1, of each channel."""
    low, high, std = (torch.tensor(v).to(like) for v in (preprocess.low, preprocess.high, preprocess.std))
    return ((high - low) * std)[:, None, None]
