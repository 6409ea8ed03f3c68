"""From decoded images to a network's input, by statistics measured once and stored with the weights."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor
from torch.nn import functional as F

from omma.core.protocols import BadImage, Images, Preprocess
from omma.core.random import epoch_order
from omma.core.words import count
from omma.data.sources import mel
from omma.data.sources.decode import PIXELS, as_channels
from omma.data.sources.values import FULL_SCALE, full_scale, in_units, number, ranges, read_in, thin

# mean and standard deviation of ImageNet's training images in [0, 1], as used by every published RGB backbone
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SAMPLE = 256  # images that are measured


def measure(images: Images, size: int, seed: int = 0, crop_share: float = 1.0) -> Preprocess:
    """Preprocessing for `images`, from a seeded sample of up to 256 of them.

    8-bit RGB: ImageNet's mean and deviation, so that published weights fit. Other 8-bit images: range 0..255,
    measured mean and deviation of each channel. Where types mix (8-bit, 16-bit, floats in [0, 1]), each image
    is scaled by its own type to 0..255, and the same holds. Anything else: each channel's range is its .1 and
    99.9 percentiles (a few hot pixels must not darken the rest), then mean and deviation within that range.
    Sounds: the range of all log-mel energies, so that nothing is cut off, then the mean and twice the
    deviation [Gong 2021, arXiv 2104.01778].
    Bad images are skipped; ValueError if no image can be read.
    """
    samples: list[np.ndarray] = []
    reasons: list[str] = []
    types = set(ranges(images))
    for i in epoch_order(seed, 0, len(images)):
        try:
            image = images.read(int(i))
        except BadImage as error:
            reasons.append(f"{images.path(int(i))}: {error}")
            continue
        types.add(image.dtype.name)
        if types == {"uint8"} and images.channels == 3 and len(samples) >= 8:
            break  # nothing is measured, and a few images suffice to see their type
        samples.append(thin(image))
        if len(samples) == SAMPLE:
            break
    if not samples:
        first = f" (first: {reasons[0]})" if reasons else ""
        raise ValueError(f"none of {count(len(images), 'image')} can be read{first}")

    c, white = images.channels, _white({full_scale(name, ranges(images)) for name in types})
    samples = [in_units(pixels[None], white, images)[0].astype(np.float32) for pixels in samples]
    by_type, sounds = white == 255.0, getattr(images, "kind", "image") == "sound"
    if by_type:
        low, high = np.zeros(c), np.full(c, 255.0)
    elif sounds:
        low, high = np.full(c, mel.LOW), np.full(c, mel.HIGH)
    else:
        values = np.concatenate(samples)
        values = values[np.isfinite(values).all(1)]
        if not len(values):
            raise ValueError(f"no finite pixel in {count(len(samples), 'image')}")
        low, high = np.percentile(values, (0.1, 99.9), axis=0)
        high = np.where(
            high > low, high, low + 1
        )  # a constant channel: all zeros, rather than a division by 0
    if by_type and c == 3:
        mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    else:
        values = np.concatenate([np.clip((p - low) / (high - low), 0, 1) for p in samples])
        values = values[np.isfinite(values).all(1)].astype(np.float64)
        mean, std = values.mean(0), values.std(0)
        std = np.where(std > 1e-3, std, 1.0) * (2 if sounds else 1)  # constant: centred only
    low, high, mean, std = (tuple(float(x) for x in v) for v in (low, high, mean, std))
    return Preprocess(
        size=size,
        channels=c,
        low=low,
        high=high,
        mean=mean,
        std=std,
        crop_share=crop_share,
        full_scale=white,
    )


def describe_range(preprocess: Preprocess) -> tuple[str, ...]:
    """A line on a range that was measured; none for 8-bit images, whose type tells it."""
    if preprocess.full_scale == FULL_SCALE["uint8"]:
        return ()
    if mel.of_sounds(preprocess):
        width = mel.HIGH - mel.LOW
        mean, std = width * preprocess.mean[0] + mel.LOW, width * preprocess.std[0] / 2
        return (f"log-mel energies x become (x - mean) / (2 std), mean {mean:.2f}, std {std:.2f}",)
    low, high = min(preprocess.low), max(preprocess.high)
    type_ = {FULL_SCALE["uint16"]: "16-bit values", 1.0: "floats in [0, 1]"}.get(
        preprocess.full_scale or 0, "raw values"
    )
    return (f"{type_} from {number(low)} to {number(high)} (.1 and 99.9 percentiles) are scaled to 0 to 1",)


def _white(scales: set[float | None]) -> float | None:
    """The full scale of a model for images of these scales: the only one, or 8 bits where several mix."""
    if None in scales:
        return None
    return scales.pop() if len(scales) == 1 else 255.0


def scale(raw: Num[Tensor, "*b c h w"], preprocess: Preprocess) -> Float[Tensor, "*b c h w"]:
    """Scale raw values to [0, 1], as a new float32 tensor; non-finite values become the channel's low."""
    if raw.dtype == torch.uint8 and set(preprocess.low) == {0.0} and set(preprocess.high) == {255.0}:
        return raw.to(torch.float32).mul_(1 / 255)  # cannot leave [0, 1]
    low, high = (
        raw.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (preprocess.low, preprocess.high)
    )
    return ((raw - low) / (high - low)).nan_to_num_(0.0, 1.0, 0.0).clamp_(0, 1)


def apply(image: Num[np.ndarray, "h w c"], preprocess: Preprocess) -> Float[Tensor, "c size size"]:
    """One decoded image, in the preprocessing's units, as the network's input.

    Resized (bicubic, antialiased), cropped, normalised.
    """
    return preprocess.normalise(_fit(image, preprocess))


def _fit(image: np.ndarray, preprocess: Preprocess) -> Float[Tensor, "c size size"]:
    """`apply` without normalising: values in [0, 1]."""
    h, w, c = image.shape
    if c != preprocess.channels:
        raise ValueError(f"image has {c} channels, the model expects {preprocess.channels}")
    size = preprocess.size
    short = shorter_side(preprocess)
    # the longer side is truncated, as in torchvision's Resize and timm's evaluation transform
    height, width = (short, int(short * w / h)) if h <= w else (int(short * h / w), short)
    if height * width > PIXELS:
        raise BadImage(f"{w} x {h} pixels are too narrow to be resized: cut it into smaller ones")
    image = image if image.flags.writeable else image.copy()  # a tensor of read-only memory is undefined
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    if pixels.dtype != torch.uint8 or c != 3:  # PyTorch's fast 8-bit kernel needs three channels
        pixels = scale(pixels, preprocess)
    if (height, width) != (h, w):
        pixels = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
    top, left = round((height - size) / 2), round((width - size) / 2)
    pixels = pixels[0, :, top : top + size, left : left + size]
    # bicubic overshoots
    return scale(pixels, preprocess) if pixels.dtype == torch.uint8 else pixels.clamp(0, 1)


def shorter_side(preprocess: Preprocess) -> int:
    """Pixels of the shorter side before the centre crop."""
    return max(preprocess.size, round(preprocess.size / preprocess.crop_share))


def load_batch(
    images: Images, indices: np.ndarray, preprocess: Preprocess, threads: int = 1, reduced: bool = False
) -> tuple[Float[Tensor, "b c s s"], Bool[np.ndarray, "b"], list[tuple[int, str]]]:
    """Read and preprocess images: the batch, which rows are good, and (index, reason) of the bad ones.

    Each image is scaled by its own type to what the model was made for; grey becomes RGB and RGB grey.
    reduced: large JPEGs are decoded at 1/2 to 1/8 scale, which is quicker and changes pixels.
    Rows of bad images are zero (the mean colour), so that shapes never depend on the data.
    """
    s, c = preprocess.size, preprocess.channels
    with torch.inference_mode(False):  # threads have no inference mode, so they could not fill its tensors
        batch = torch.zeros(len(indices), c, s, s)
    good = np.zeros(len(indices), dtype=bool)
    at_least = shorter_side(preprocess) if reduced else None

    def load(row: int) -> tuple[int, str] | None:
        index = int(indices[row])
        try:
            image = read_in(images, preprocess.full_scale, index, at_least)
            batch[row] = apply(as_channels(image, c) if {image.shape[-1], c} == {1, 3} else image, preprocess)
        except BadImage as error:
            return index, str(error)
        good[row] = True
        return None

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(load, range(len(indices))))
    else:
        results = [load(row) for row in range(len(indices))]
    return batch, good, [result for result in results if result is not None]


def as_dict(preprocess: Preprocess) -> dict[str, Any]:
    """Plain values for JSON, without a full scale that the range alone tells, as in earlier versions."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(preprocess).items()}
    if replace(preprocess, full_scale=None).full_scale == preprocess.full_scale:
        del values["full_scale"]
    return values


def from_dict(values: Mapping[str, Any]) -> Preprocess:
    """The inverse of `as_dict`; keys of later versions are refused by name."""
    unknown = set(values) - {field.name for field in fields(Preprocess)}
    if unknown:
        raise ValueError(f"preprocessing has unknown keys {sorted(unknown)}: written by a newer omma?")
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Preprocess(**plain)
