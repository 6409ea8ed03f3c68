"""RandAugment's operations on a batch in [0, 1], one strength per image [Cubuk 2019, arXiv 1909.13719].

Each equals timm's operation of that name within the rounding to the 8 bits of Pillow's images; strengths grow
with the level as in timm's `inc1`. Posterise, solarise and equalise work on 256 levels, as in Pillow.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from scipy.special import ndtri
from torch import Tensor

from omma.core.protocols import Key, RandAugment
from omma.core.random import uniform
from omma.data.pixels import colour

OPERATIONS = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "colour",
    "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
NEED_RGB = ("colour",)
GEOMETRIC = (("rotate",), ("shear_x", "translate_x"), ("shear_y", "translate_y"))  # of equal cost

Images = Float[Tensor, "b c h w"]
Each = Float[Tensor, "b"]


# ---------------------------------------------------------------- draws
class Draws(NamedTuple):
    """k operations of each of n views, in the order in which they are applied."""

    operation: Int64[np.ndarray, "n k"]  # index in OPERATIONS; -1: none
    strength: Float32[np.ndarray, "n k"]  # in the operation's own unit (`strength`)


def available(channels: int) -> list[str]:
    """The operations that are drawn for images of so many channels."""
    return [name for name in OPERATIONS if channels == 3 or name not in NEED_RGB]


def draw(key: Key, stream: int, setting: RandAugment, views: int, channels: int) -> Draws:
    """Operations for `views` views of each image, image by image (n = b views)."""
    u = uniform(key, stream, views * setting.count * 4).reshape(-1, setting.count, 4).astype(np.float64)
    names = available(channels)
    numbers = np.array([OPERATIONS.index(name) for name in names])
    operation = np.where(u[..., 1] < setting.p, numbers[(u[..., 0] * len(names)).astype(np.int64)], -1)
    # the middle of each step of 2^-24 between uniform numbers, so that none maps to minus infinity
    normal = ndtri(u[..., 2] + 2.0**-25)
    level = np.clip(setting.magnitude + setting.deviation * normal, 0, 10)
    values = np.zeros(level.shape, np.float32)
    for number in numbers:
        rows = operation == number
        values[rows] = strength(OPERATIONS[number], level[rows], u[..., 3][rows] < 0.5)
    return Draws(operation, values)


def strength(operation: str, level: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Convert a level in [0, 10] to the operation's own unit, with the sign that `positive` gives.

    rotate: degrees, counter-clockwise. posterize: bits kept. solarize: the level of 256 from which on values
    are inverted. solarize_add: what is added, of 255. colour, contrast, brightness, sharpness: a factor.
    shear_x, shear_y: its tangent. translate_x, translate_y: a share of the side. Others: 0, unused.
    """
    share = level / 10
    sign = np.where(positive, 1.0, -1.0)
    if operation == "rotate":
        return sign * share * 30
    if operation == "posterize":
        return np.maximum(1, 4 - np.floor(share * 4))  # timm's level 10 keeps none, which Pillow refuses
    if operation == "solarize":
        return 256 - np.minimum(256, np.floor(share * 256))
    if operation == "solarize_add":
        return np.minimum(128, np.floor(share * 110))
    if operation in ("colour", "contrast", "brightness", "sharpness"):
        return np.maximum(0.1, 1 + sign * share * 0.9)
    if operation in ("shear_x", "shear_y"):
        return sign * share * 0.3
    if operation in ("translate_x", "translate_y"):
        return sign * share * 0.45
    return np.zeros_like(share)


def apply_(images: Images, draws: Draws, fill: Sequence[float]) -> Images:
    """Apply the drawn operations in place; `fill` (in [0, 1], one per channel) is the colour outside."""
    numbers = {name: number for number, name in enumerate(OPERATIONS)}

    def rows_of(operation: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, Tensor]:
        rows = np.flatnonzero(np.isin(operation, [numbers[name] for name in names]))
        return rows, torch.from_numpy(rows).to(images.device)

    for operation, strengths in zip(draws.operation.T, draws.strength.T, strict=True):
        for name, change in _PHOTOMETRIC.items():
            rows, at = rows_of(operation, (name,))
            if len(rows):
                values = torch.from_numpy(strengths[rows]).to(images.device)
                images.index_copy_(0, at, change(images.index_select(0, at), values))
        for names in GEOMETRIC:
            rows, at = rows_of(operation, names)
            if len(rows):
                drawn = [OPERATIONS[operation[row]] for row in rows]
                maps = matrices(drawn, strengths[rows], *images.shape[-2:])
                images.index_copy_(0, at, affine(images.index_select(0, at), maps, fill))
    return images


# ---------------------------------------------------------------- values
def autocontrast(images: Images, _: Each | None = None) -> Images:
    """Stretch each channel to [0, 1]; a constant one is unchanged."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    span = high - low
    constant = span <= 0
    return torch.where(constant, images, (images - low) / span.masked_fill(constant, 1.0))


def equalize(images: Images, _: Each | None = None) -> Images:
    """Equalise each channel's histogram of 256 levels as Pillow does; a channel of one level is unchanged.

    With n pixels, of which m hold the highest level, s = floor((n - m) / 255), level v becomes
    floor((s / 2 + number of pixels below v) / s), 255 at most; nothing changes where s is 0.
    """
    b, c, h, w = images.shape
    levels = _levels(images).reshape(b * c, h * w)
    counts = levels.new_zeros(b * c, 256).scatter_add_(1, levels, torch.ones_like(levels))
    most = counts.gather(1, levels.amax(1, keepdim=True))
    step = (h * w - most) // 255
    table = ((step // 2 + counts.cumsum(1) - counts) // step.clamp(min=1)).clamp_(max=255)
    even = table.gather(1, levels).to(images.dtype).mul_(1 / 255)
    return torch.where(step == 0, images.reshape(b * c, h * w), even).view_as(images)


def invert(images: Images, _: Each | None = None) -> Images:
    """1 - x."""
    return 1 - images


def posterize(images: Images, bits: Each) -> Images:
    """Keep the uppermost `bits` of 8 bits."""
    step = torch.exp2(8 - bits)[:, None, None, None]
    return (_levels(images) / step).floor_().mul_(step).mul_(1 / 255)


def solarize(images: Images, threshold: Each) -> Images:
    """Invert values at and above `threshold` (of 256 levels)."""
    return torch.where(_levels(images) >= threshold[:, None, None, None], 1 - images, images)


def solarize_add(images: Images, added: Each) -> Images:
    """Add `added` levels (of 255) to values below the middle."""
    raised = (images + (added / 255)[:, None, None, None]).clamp_(max=1)
    return torch.where(_levels(images) < 128, raised, images)


def sharpness(images: Images, factor: Each) -> Images:
    """f x + (1 - f) smooth(x), clipped; smooth is 3x3, (1 1 1; 1 5 1; 1 1 1) / 13. The border stays."""
    if min(images.shape[-2:]) < 3:
        return images
    inner = images[:, :, 1:-1, 1:-1]
    smooth = F.avg_pool2d(images, 3, stride=1).mul_(9).add_(inner, alpha=4).div_(13)
    inner.copy_(torch.lerp(smooth, inner, factor[:, None, None, None]).clamp_(0, 1))
    return images


def _levels(images: Images) -> Int64[Tensor, "b c h w"]:
    """The nearest of 256 levels."""
    return (images * 255).round_().long()


_PHOTOMETRIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "colour": colour.saturation_,
    "contrast": colour.contrast_,
    "brightness": colour.brightness_,
    "sharpness": sharpness,
}


# ---------------------------------------------------------------- geometry
def matrices(
    names: Sequence[str], strengths: np.ndarray, height: int, width: int
) -> Float32[np.ndarray, "n 6"]:
    """Coefficients a .. f of the map from a point (x, y) of the result to (a x + b y + c, d x + e y + f)."""
    rows = np.zeros((len(names), 6))
    for row, name, value in zip(rows, names, strengths.tolist(), strict=True):
        a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
        if name == "rotate":  # about the centre
            cos, sin = math.cos(math.radians(-value)), math.sin(math.radians(-value))
            x, y = width / 2, height / 2
            a, b, c, d, e, f = cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y
        elif name == "shear_x":
            b = value
        elif name == "shear_y":
            d = value
        elif name == "translate_x":
            c = value * width
        elif name == "translate_y":
            f = value * height
        row[:] = a, b, c, d, e, f
    return rows.astype(np.float32)


def _cubic(t: Tensor) -> tuple[Tensor, ...]:
    """Keys' cubic convolution with a = -1, as in Pillow's transform, at distances 1 + t, t, 1 - t, 2 - t."""
    square, cube = t * t, t * t * t
    return 2 * square - t - cube, 1 - 2 * square + cube, t + square - cube, cube - square


_IDENTITY = ((slice(3, 6), (0, 1, 0)), (slice(0, 3), (1, 0, 0)))  # coefficients that fix rows, columns


def affine(images: Images, maps: Float32[np.ndarray, "b 6"], fill: Sequence[float]) -> Images:
    """Warp each image by its map, bicubic with repeated edges; `fill` where the map leads outside."""
    b, c, h, w = images.shape
    a = torch.from_numpy(maps).to(images.device, images.dtype)[:, :, None, None]
    x = torch.arange(w, device=images.device, dtype=images.dtype) + 0.5
    y = (torch.arange(h, device=images.device, dtype=images.dtype) + 0.5)[:, None]
    across, down = a[:, 0] * x + a[:, 1] * y + a[:, 2], a[:, 3] * x + a[:, 4] * y + a[:, 5]
    inside = (across >= 0) & (across < w) & (down >= 0) & (down < h)
    left, top = (across - 0.5).floor(), (down - 0.5).floor()
    columns, rows = _cubic(across - 0.5 - left), _cubic(down - 0.5 - top)
    left, top = left.long() - 1, top.long() - 1
    # a map that fixes rows or columns has a single weight of 1 along them
    across_only, down_only = (bool((maps[:, cut] == line).all()) for cut, line in _IDENTITY)
    flat = images.reshape(b, c, h * w)
    total = torch.zeros_like(flat)
    for i in (1,) if across_only else range(4):
        line = (top + i).clamp_(0, h - 1) * w
        for j in (1,) if down_only else range(4):
            at = (line + (left + j).clamp_(0, w - 1)).view(b, 1, h * w).expand(b, c, h * w)
            total.addcmul_(flat.gather(2, at), (rows[i] * columns[j]).view(b, 1, h * w))
    outside = images.new_tensor(fill)[:, None, None]
    return torch.where(inside[:, None], total.view_as(images).clamp_(0, 1), outside)
