"""Crop, resize and blur many images at once, each with its own box or sigma."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Num
from torch import Tensor
from torch.nn import functional as F

from omma.ops.resampling import Filter, resampling

# Largest factor by which CUDA reduces a side: at s its kernel needs 65 (4 s + 1) of 12,288 shared numbers.
STEEP = 40


def crop_resize(
    images: Num[Tensor, "b c h w"],
    boxes: Int[Tensor, "b 4"],
    size: int,
    filter: Filter = "bilinear",
    flip: Bool[Tensor, "b"] | None = None,
) -> Float[Tensor, "b c size size"]:
    """Crop boxes (top, left, height, width) and resize them with antialiasing, then mirror where `flip`.

    Two batched products with [size, h] and [size, w] matrices, one pair per image. Equal to torchvision's
    `resized_crop(antialias=True)` on float images; values keep their scale (0..255 for uint8).
    """
    b, c, h, w = images.shape
    top, left, height, width = boxes.unbind(1)
    rows = resampling(top, height, h, size, filter)
    columns = resampling(left, width, w, size, filter, flip)
    # columns first: [size, w] [w, c h] is one product per image, whose result is [size c, h] for the rows
    flat = images.float().reshape(b, c * h, w)
    cut = torch.bmm(columns, flat.transpose(1, 2)).view(b, size * c, h)
    cut = torch.bmm(cut, rows.transpose(1, 2)).view(b, size, c, size)
    return cut.permute(0, 2, 3, 1).contiguous()


def cut_into(
    out: Num[np.ndarray, "c height width"],
    image: Num[np.ndarray, "h w c"],
    box: Sequence[int],
    filter: Filter = "bilinear",
    flip: bool = False,
) -> None:
    """Crop one box (top, left, height, width) of an array, resize and mirror it; see `crop_resize`.

    out: uint8 or float32. uint8 images are resized by PyTorch's 8-bit kernel, which rounds and clips to
    0..255 after each of its two passes: within 1.5 of the exact result, but more at edges that overshoot.
    """
    top, left, height, width = box
    pixels = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)[None]
    if image.dtype != np.uint8:
        pixels = pixels.float()
    resized = F.interpolate(pixels, size=out.shape[1:], mode=filter, antialias=True)[0]
    torch.from_numpy(out).copy_(resized.flip(-1) if flip else resized)


def crop_resize_each(
    image: Float[Tensor, "1 c h w"], box: Sequence[int], size: int, filter: Filter = "bilinear"
) -> Float[Tensor, "1 c size size"]:
    """Crop one box (top, left, height, width) of an image on any device and resize it; see `crop_resize`."""
    top, left, height, width = box
    piece = image[:, :, top : top + height, left : left + width]
    if max(height, width) > STEEP * size:
        return crop_resize(piece, torch.tensor([[0, 0, height, width]], device=image.device), size, filter)
    return F.interpolate(piece, size=(size, size), mode=filter, antialias=True)


# ---------------------------------------------------------------- blur
PASSES = 3  # of a mean in place of a Gaussian
Kernel = Literal["gaussian", "boxes"]
Border = Literal["reflect", "edge", "zero"]


def blur_radius(sigma: float) -> int:
    """Taps on each side of the centre: 3 sigma (99.7 % of a Gaussian's mass), and at least one."""
    return max(1, math.ceil(3 * sigma))


def gaussian_taps(sigma: Float[np.ndarray, "b"], radius: int | None = None) -> Float64[np.ndarray, "b taps"]:
    """Weights from the centre outwards, 0 beyond each sigma's radius; the symmetric kernel sums to 1."""
    radii = np.array([[blur_radius(float(s)) if radius is None else radius] for s in sigma])
    k = np.arange(radii.max() + 1)
    taps = np.where(k <= radii, np.exp(-0.5 * (k / sigma[:, None].astype(np.float64)) ** 2), 0)
    return taps / (taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdims=True))


def box_taps(sigma: Float[np.ndarray, "b"]) -> Float64[np.ndarray, "b taps"]:
    """`gaussian_taps` of the mean over a box, PASSES times of which have the variance of a Gaussian.

    With whole boxes of 2 l + 1 pixels most variances do not exist: two more pixels at the ends have a share a
    of the others' weight [Gwosdek 2011, "Theoretical foundations of Gaussian convolution by extended box
    filtering", eq. 13], as in Pillow's GaussianBlur.
    """
    variance = sigma[:, None].astype(np.float64) ** 2 / PASSES
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    share = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    k = np.arange(int(whole.max()) + 2)
    return np.where(k <= whole, 1, np.where(k == whole + 1, share, 0)) / (2 * (whole + share) + 1)


def kernels(
    sigma: Float[np.ndarray, "b"], kernel: Kernel = "gaussian", radius: int | None = None
) -> tuple[Float64[np.ndarray, "b taps"], int]:
    """The weights of each sigma's kernel, and how many times it is applied."""
    return (box_taps(sigma), PASSES) if kernel == "boxes" else (gaussian_taps(sigma, radius), 1)


def _reflected(n: int, radius: int, device: torch.device) -> Int[Tensor, "n_padded"]:
    """Indices of positions -radius .. n + radius - 1, mirrored at both ends without repeating the edge."""
    period = max(2 * (n - 1), 1)
    at = torch.arange(-radius, n + radius, device=device).remainder_(period)
    return torch.minimum(at, period - at) if n > 1 else torch.zeros_like(at)


def gaussian_blur(
    images: Float[Tensor, "b c h w"],
    sigma: Float[np.ndarray, "b"],
    kernel: Kernel = "gaussian",
    border: Border = "reflect",
    radius: int | None = None,
) -> Float[Tensor, "b c h w"]:
    """Blur each image with its own sigma (pixels, above 0).

    gaussian, reflect: equal to torchvision's `gaussian_blur` with `kernel_size = 2 * radius + 1`, which is
    `blur_radius(sigma)` if None; images smaller than the radius, which torchvision rejects, are allowed.
    boxes, edge: equal to Pillow's `GaussianBlur`, up to its rounding to 8 bits in each pass. The largest
    sigma of a batch sets the cost: batch images of similar sigma.
    """
    taps, passes = kernels(sigma, kernel, radius)
    for _ in range(passes):
        images = _convolved(images, taps, border)
    return images


def _convolved(
    images: Float[Tensor, "b c h w"], taps: Float64[np.ndarray, "b taps"], border: Border
) -> Float[Tensor, "b c h w"]:
    b, c, h, w = images.shape
    radius = taps.shape[1] - 1
    if border != "reflect":
        padded = F.pad(images, (radius,) * 4, mode="replicate" if border == "edge" else "constant")
    elif radius < min(h, w):
        padded = F.pad(images, (radius,) * 4, mode="reflect")
    else:
        padded = images[:, :, _reflected(h, radius, images.device)][..., _reflected(w, radius, images.device)]
    # The kernels are symmetric: each tap weighs the sum of two shifted copies. On the flattened padded image
    # a shift is an offset, by rows, then by pixels; what wraps around lands in the padding. Measured faster
    # on a CPU than dense or banded matrix products (at 224 px and radius 4: .7, 2.5 and .9 ms per image).
    step = w + 2 * radius
    flat = padded.reshape(b, -1)
    across = _shifted_sum(_shifted_sum(flat, taps, step), taps, 1)
    out = across.as_strided((b, c, h, w), (across.stride(0), (h + 2 * radius) * step, step, 1))
    return out


def _shifted_sum(flat: Float[Tensor, "b n"], taps: np.ndarray, step: int) -> Float[Tensor, "b m"]:
    """sum_k taps[|k|] flat[i + k step] for all i where every term exists: m = n - 2 radius step."""
    radius = taps.shape[1] - 1
    n = flat.shape[1] - 2 * radius * step
    weights: Any = taps[0].tolist()  # scalars are cheaper than broadcasting
    if len(taps) > 1:
        weights = torch.from_numpy(taps.astype(np.float32)).to(flat.device, flat.dtype).T[..., None]
    total = flat[:, radius * step :][:, :n] * weights[0]
    pair = torch.empty_like(total)
    for k in range(1, radius + 1):
        torch.add(flat[:, (radius - k) * step :][:, :n], flat[:, (radius + k) * step :][:, :n], out=pair)
        total.add_(pair, alpha=weights[k]) if len(taps) == 1 else total.addcmul_(pair, weights[k])
    return total
