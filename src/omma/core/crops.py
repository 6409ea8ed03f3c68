"""Crops of an image, or of several frames of a sequence, and how their colours change."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Colour augmentation of one kind of crop; probabilities per image, applied in this order.

    Operations that need RGB (saturation, hue, grey) are left out on other channel counts.
    """

    brightness: float = 0.0  # factor uniform in [1 - x, 1 + x], never below 0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # shift uniform in [-x, x], in turns, x <= .5
    jitter_p: float = 0.0  # of the four above ...
    jitter_order: Literal["fixed", "random"] = "fixed"  # ... as listed, or in an order drawn for each view
    grey_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    # boxes: three passes of a mean instead, whose deviation is the Gaussian's, as Pillow's GaussianBlur
    blur_kernel: Literal["gaussian", "boxes"] = "gaussian"
    blur_radius: int | None = None  # pixels where a Gaussian is cut off; None: 3 sigma
    blur_border: Literal["reflect", "edge", "zero"] = "reflect"  # what lies beyond the crop
    solarise_p: float = 0.0  # invert values at or above .5


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Operations on one kind of crop, drawn for each image with replacement [Cubuk 2019, arXiv 1909.13719].

    The defaults are DeiT's (timm's `rand-m9-mstd0.5-inc1`, 15 operations). The one that needs RGB (colour) is
    left out on other channel counts.
    """

    count: int = 2  # operations drawn, applied one after the other ...
    p: float = 0.5  # ... each with this probability
    magnitude: float = 9.0  # how strong, of 10 ...
    deviation: float = 0.5  # ... and its normal deviation; cut to [0, 10]

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} of RandAugment: must be at least 1; None switches it off")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude={self.magnitude} of RandAugment: must lie in [0, 10]")


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Changes of one kind of crop of a log-mel image, applied in this order.

    They stand for a recording cut more widely, another recorder, distance, voice or room, and other noise.
    """

    pause_p: float = 0.7  # of silence before and after ...
    pause: float = 0.7  # ... as a share of the view's time, together, uniform up to this
    contrast: float = 0.3  # deviation of the logarithm of a factor of the range about the mean
    level: float = 8.0  # dB, deviation of a constant added to all energies
    tilt: float = 8.0  # dB, deviations of a slope and of a curvature over frequency, at its ends
    noise_p: float = 0.8  # of steady noise ...
    snr: tuple[float, float] = (0.0, 50.0)  # ... so many dB below the view's energy, uniform ...
    noise_tilt: float = 16.0  # ... and its own slope and curvature, as `tilt`


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One kind of random resized crop: `count` of them for every image."""

    count: int = 1
    # frames of a sequence that each of them is cut from alike (`frames.plan` sets it, no method)
    frames: int = 1
    size: int  # pixels, square
    resample: Literal["bicubic", "bilinear"] = "bicubic"  # both antialiased
    scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.5  # horizontal
    augment: RandAugment | None = None  # before `colour`
    colour: Colour | None = None
    spectrum: Spectrum | None = None  # after normalising, of sounds
    erase_p: float = 0.0  # after normalising: a rectangle of noise [Zhong 2017, arXiv 1708.04896]
