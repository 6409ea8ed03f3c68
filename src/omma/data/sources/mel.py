"""Log-mel energies of sound, as Kaldi, AST and Audio-MAE compute them.

16 kHz; windows of 25 ms every 10 ms; each loses its mean, then pre-emphasis, a symmetric Hann window, the
power spectrum of 512 points, 128 triangles evenly spaced on Kaldi's mel scale from 20 Hz to 8 kHz, and the
natural logarithm [Gong 2021, AST, arXiv 2104.01778; Povey 2011, Kaldi].
"""

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from omma.core.protocols import Preprocess

RATE = 16_000  # samples a second
WINDOW, SHIFT = 400, 160  # samples: 25 ms and 10 ms
MELS = 128
LOWEST = 20.0  # Hz
FLOOR = 1.192092955078125e-07  # of an energy, before the logarithm
_FFT = 512
_PREEMPHASIS = 0.97
_ZEROS = 10  # zero crossings of the resampling filter on either side

# The range that `Preprocess` maps to [0, 1]: no sound of amplitude 1 leaves it, so nothing is cut off.
LOW, HIGH = -16.0, 16.0  # log(FLOOR) is -15.9; 512 sum(window^2) (2 x 1.97)^2 is an energy of e^14.0


def of_sounds(preprocess: Preprocess) -> bool:
    """Was a model with this preprocessing made for log-mel images?"""
    return (preprocess.low, preprocess.high) == ((LOW,), (HIGH,))


def frames_in(samples: int) -> int:
    """Whole windows in so many samples at 16 kHz."""
    return 1 + (samples - WINDOW) // SHIFT if samples >= WINDOW else 0


def span(first: int, frames: int) -> tuple[int, int]:
    """The samples (start, stop) at 16 kHz that these frames cover."""
    return first * SHIFT, (first + frames - 1) * SHIFT + WINDOW


def log_mel(samples: Float[np.ndarray, "n"]) -> Float[np.ndarray, "frames 128"]:
    """float32 log-mel energies of samples at 16 kHz in [-1, 1]; frame k covers `span(k, 1)`."""
    frames = frames_in(len(samples))
    if not frames:
        return np.zeros((0, MELS), np.float32)
    samples = np.ascontiguousarray(samples, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::SHIFT][:frames]
    windows = windows - windows.mean(axis=1, keepdims=True)
    before = np.concatenate([windows[:, :1], windows[:, :-1]], axis=1)
    spectrum = np.fft.rfft((windows - _PREEMPHASIS * before) * _hann(), _FFT)
    power = spectrum.real**2 + spectrum.imag**2
    return np.log(np.maximum(power @ _filters(), FLOOR)).astype(np.float32)


@lru_cache(maxsize=1)
def _hann() -> Float[np.ndarray, "400"]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))


@lru_cache(maxsize=1)
def _filters() -> Float[np.ndarray, "257 128"]:
    """Triangles in mels; mel = 1127 ln(1 + Hz / 700)."""
    frequencies = np.linspace(0, RATE / 2, _FFT // 2 + 1)
    mels = 1127 * np.log1p(frequencies / 700)[:, None]
    low, high = (1127 * math.log1p(hertz / 700) for hertz in (LOWEST, RATE / 2))
    edges = np.linspace(low, high, MELS + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    return np.maximum(0, np.minimum((mels - left) / (centre - left), (right - mels) / (right - centre)))


# ---------------------------------------------------------------- resampling
def length_at_16k(samples: int, rate: int) -> int:
    """Samples that `samples` at `rate` Hz become."""
    up, down = _ratio(rate)
    return -(-samples * up // down)


def needed(start: int, stop: int, rate: int) -> tuple[int, int]:
    """The samples at `rate` Hz from which samples start to stop at 16 kHz are made.

    The first may be negative; it is a multiple of what keeps the filter's phase.
    """
    up, down = _ratio(rate)
    reach = 1 + _ZEROS * max(up, down) // up
    return (start * down // up - reach) // down * down, -(-stop * down // up) + reach


def resampled(
    samples: Float[np.ndarray, "n"], first: int, start: int, stop: int, rate: int
) -> Float[np.ndarray, "m"]:
    """Samples start to stop at 16 kHz from those at `rate` Hz, of which `samples` begin with number `first`.

    first: of `needed`, or 0 where that is negative. Kaiser-windowed sinc of 10 zero crossings, as
    `scipy.signal.resample_poly`; a part of a recording is resampled to the same values as the whole.
    """
    up, down = _ratio(rate)
    if up == down:
        return samples[start - first : stop - first]
    from scipy.signal import resample_poly  # takes seconds to import, and images do not need it

    offset = first * up // down
    return resample_poly(samples, up, down, window=_taps(up, down))[start - offset : stop - offset]


def _ratio(rate: int) -> tuple[int, int]:
    ratio = Fraction(RATE, rate)
    return ratio.numerator, ratio.denominator


@lru_cache(maxsize=16)
def _taps(up: int, down: int) -> Float[np.ndarray, "taps"]:
    from scipy.signal import firwin

    widest = max(up, down)
    window: Any = ("kaiser", 5.0)
    return np.asarray(firwin(2 * _ZEROS * widest + 1, 1 / widest, window=window))
