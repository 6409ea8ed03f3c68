"""Random crops, cut image by image or from a whole batch, and their augmentation in batches.

Every random number depends only on the image's Key, the crop's index in the plan and the view's number, so a
view does not depend on the process or the batch that makes it. Cropping (with mirroring) needs the image at
full size and runs where images are decoded; the rest runs on the device.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

from omma.core.compiled import compiles
from omma.core.errors import install_command
from omma.core.protocols import Colour, Crop, Key, Preprocess
from omma.core.random import Stream, uniform
from omma.data.batches.colour_draws import ColourDraws, apply_colour, draw_colour
from omma.data.batches.preprocess import scale
from omma.data.pixels import erasing, randaugment, spectrum
from omma.data.pixels.resize import (
    crop_resize,
    crop_resize_each,
    cut_into,
    kernels,
)

_TRIES = 10  # as torchvision's RandomResizedCrop
# Values per chunk and thread on a CPU (2.4 MB). Measured: a quarter of it takes an eighth longer and a
# twelfth half as long again, for the overhead of calls; much larger chunks do not fit into the caches.
_CHUNK = 602_112


# ---------------------------------------------------------------- boxes
def draw_boxes(
    key: Key,
    crop: Crop,
    crop_number: int,
    heights: Int64[np.ndarray, "b *f"],
    widths: Int64[np.ndarray, "b *f"],
) -> Int64[np.ndarray, "b v 4"]:
    """Boxes (top, left, height, width) for the views of each image, drawn like torchvision's.

    Views are `crop.count`, or those of f frames: each by its own draw, or by one draw for all (crop.frames).
    Area uniform in `scale`, logarithm of the ratio width / height uniform; ten tries to fit into the image,
    then the largest centred box whose ratio is within bounds.
    """
    b, v = len(heights), crop.count
    u = uniform(key, Stream.BOX + crop_number, v * (2 * _TRIES + 2)).reshape(b, v, -1).astype(np.float64)
    full_h, full_w = (np.asarray(side, np.int64).reshape(b, -1, 1) for side in (heights, widths))
    low, high = (math.log(r) for r in crop.ratio)
    area = full_h * full_w * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * u[..., :_TRIES])
    ratio = np.exp(low + (high - low) * u[..., _TRIES : 2 * _TRIES])
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= full_w) & (h > 0) & (h <= full_h)
    first = fits.argmax(-1)[..., None]
    h, w = (np.take_along_axis(side, first, -1)[..., 0] for side in (h, w))

    full_h, full_w = full_h[..., 0], full_w[..., 0]
    shape = full_w / full_h
    central_w = np.where(shape > crop.ratio[1], np.rint(full_h * crop.ratio[1]).astype(np.int64), full_w)
    central_h = np.where(shape < crop.ratio[0], np.rint(full_w / crop.ratio[0]).astype(np.int64), full_h)
    any_fits = fits.any(-1)
    h = np.where(any_fits, h, np.clip(central_h, 1, full_h))
    w = np.where(any_fits, w, np.clip(central_w, 1, full_w))
    top = np.where(any_fits, np.floor(u[..., -2] * (full_h - h + 1)).astype(np.int64), (full_h - h) // 2)
    left = np.where(any_fits, np.floor(u[..., -1] * (full_w - w + 1)).astype(np.int64), (full_w - w) // 2)
    return np.stack([top, left, h, w], axis=-1)


def draw_flips(key: Key, crop: Crop, crop_number: int) -> Bool[np.ndarray, "b v"]:
    """Which views are mirrored."""
    return np.repeat(uniform(key, Stream.FLIP + crop_number, crop.count) < crop.flip_p, crop.frames, axis=1)


def at_least(plan: Sequence[Crop]) -> int:
    """Pixels of the shorter side that suffice when decoding an image for this plan.

    With so many, a square crop at the first quarter of its range of scale is not enlarged: only the smallest
    crops of a large photograph become somewhat softer. A bound for the smallest (size / sqrt(scale[0]))
    would mostly rule out decoding at reduced size, which is what makes decoding cheap.
    """
    return max(math.ceil(c.size / math.sqrt(0.75 * c.scale[0] + 0.25 * c.scale[1])) for c in plan)


# ---------------------------------------------------------------- crops
def cut(
    images: Sequence[Num[np.ndarray, "h w c"]], plan: Sequence[Crop], key: Key
) -> tuple[Num[Tensor, "b v c s s"], ...]:
    """All crops of the plan from images of any sizes, in raw values; uint8 if all images are.

    images: one for each entry of the key, or its frames, one after another.
    """
    b, frames = len(key.index), _frames(len(images), key)
    heights, widths = (np.array([im.shape[axis] for im in images]).reshape(b, frames) for axis in (0, 1))
    channels = images[0].shape[2]
    # a batch has one dtype: a single 16-bit file among 8-bit ones makes it float
    eight_bit = all(image.dtype == np.uint8 for image in images)
    crops = []
    for number, crop in enumerate(plan):
        boxes = draw_boxes(key, crop, number, heights, widths).tolist()
        flips = draw_flips(key, crop, number)
        shape = (b, crop.count * crop.frames, channels, crop.size, crop.size)
        out = np.empty(shape, dtype=np.uint8 if eight_bit else np.float32)
        for index, image in enumerate(images):
            i, frame = divmod(index, frames)
            for view in range(frame, shape[1], frames):
                cut_into(out[i, view], image, boxes[i][view], crop.resample, bool(flips[i, view]))
        crops.append(torch.from_numpy(out))
    return tuple(crops)


def cut_each(
    images: Sequence[Num[Tensor, "c h w"]], plan: Sequence[Crop], key: Key
) -> tuple[Num[Tensor, "b v c s s"], ...]:
    """`cut` for images on a device, where the crops are made and stay.

    Uses the float resize and rounds once at the end: GPUs lack the 8-bit one, which rounds after each pass.
    """
    b, frames = len(key.index), _frames(len(images), key)
    heights, widths = (np.array([im.shape[axis] for im in images]).reshape(b, frames) for axis in (1, 2))
    boxes = [draw_boxes(key, crop, n, heights, widths).tolist() for n, crop in enumerate(plan)]
    flips = [draw_flips(key, crop, n).tolist() for n, crop in enumerate(plan)]
    first = images[0]
    crops = [
        first.new_empty((b, crop.count * crop.frames, len(first), crop.size, crop.size), dtype=torch.float32)
        for crop in plan
    ]
    for index, image in enumerate(images):
        i, frame = divmod(index, frames)
        whole = image.float()[None]
        for crop, out, box, flip in zip(plan, crops, boxes, flips):
            for view in range(frame, out.shape[1], frames):
                piece = crop_resize_each(whole, box[i][view], crop.size, crop.resample)[0]
                piece = piece.flip(-1) if flip[i][view] else piece
                out[i, view] = piece.round_().clamp_(0, 255) if image.dtype == torch.uint8 else piece
    eight_bit = all(image.dtype == torch.uint8 for image in images)
    return tuple(out.to(torch.uint8) if eight_bit else out for out in crops)


def cut_batch(
    images: Num[Tensor, "n c h w"], plan: Sequence[Crop], key: Key
) -> tuple[Float[Tensor, "b v c s s"], ...]:
    """All crops of the plan from images of one size, in raw values, on the images' device."""
    n, c, h, w = images.shape
    b, frames = len(key.index), _frames(n, key)
    sides = np.full((b, frames), h), np.full((b, frames), w)
    crops = []
    for number, crop in enumerate(plan):
        boxes = torch.from_numpy(draw_boxes(key, crop, number, *sides)).to(images.device)
        flips = torch.from_numpy(draw_flips(key, crop, number)).to(images.device)
        count = crop.count * crop.frames
        views = images.repeat_interleave(count, 0) if count > frames else images
        out = crop_resize(views, boxes.reshape(-1, 4), crop.size, crop.resample, flips.reshape(-1))
        crops.append(out.view(b, count, c, crop.size, crop.size))
    return tuple(crops)


def _frames(images: int, key: Key) -> int:
    """Frames of each sample; with several, each view is of one of them (data/batches/frames.py)."""
    return images // len(key.index)


# ---------------------------------------------------------------- augment
def augment(
    crops: Sequence[Num[Tensor, "b v c s s"]], plan: Sequence[Crop], key: Key, preprocess: Preprocess
) -> tuple[Float[Tensor, "b v c s s"], ...]:
    """Augment and normalise crops (raw values) by the plan; without RGB, operations that need it are skipped.

    In this order: RandAugment's operations, colour, normalising, erasing.
    """
    return tuple(
        _augment(raw, crop, number, key, preprocess)
        for number, (raw, crop) in enumerate(zip(crops, plan, strict=True))
    )


def _augment(raw: Tensor, crop: Crop, number: int, key: Key, preprocess: Preprocess) -> Tensor:
    draws = draw_colour(key, crop.colour, crop.count, number) if crop.colour else None
    if draws and crop.frames > 1:
        draws = ColourDraws(*(np.repeat(values, crop.frames, axis=0) for values in draws))
    flat = raw.flatten(0, 1)
    if draws and crop.colour and _compiles(flat, crop):
        out = _compiled(flat, crop.colour, draws, preprocess)
    else:
        out = _by_tensors(flat, crop, number, key, draws, preprocess)
    out = out.view(raw.shape)
    if crop.spectrum:
        stream = Stream.SPECTRUM + number
        changes = spectrum.draw(key, stream, crop.spectrum, crop.count).in_frames(crop.frames)
        spectrum.apply_(out, changes, key, stream, preprocess)
    if crop.erase_p:
        stream = Stream.ERASE + number
        boxes = erasing.draw(key, stream, crop.erase_p, crop.count, crop.size)
        erasing.erase_(out, np.repeat(boxes, crop.frames, axis=1), key, stream)
    return out


def _compiles(images: Tensor, crop: Crop) -> bool:
    return _has_loops(images.device.type, images.shape[1], crop) and compiles()


def _has_loops(device: str, channels: int, crop: Crop) -> bool:
    return device == "cpu" and channels == 3 and crop.augment is None


def _compiled(raw: Tensor, setting: Colour, draws: ColourDraws, preprocess: Preprocess) -> Tensor:
    """`_by_tensors` for RGB images on the CPU without RandAugment, in as many threads as PyTorch uses."""
    from omma.data.pixels import colour_numba  # Numba takes half a second to import

    blurred, count = draws.sigma > 0, torch.get_num_threads()
    taps, passes = kernels(np.where(blurred, draws.sigma, 1), setting.blur_kernel, setting.blur_radius)
    radius = np.count_nonzero(taps[:, 1:], axis=1) * blurred
    border = colour_numba.BORDERS.index(setting.blur_border)
    factors = np.stack([draws.brightness, draws.contrast, draws.saturation, draws.hue], axis=1)
    low, high, mean, std = (
        np.array(v, np.float32) for v in (preprocess.low, preprocess.high, preprocess.mean, preprocess.std)
    )
    out = np.empty(raw.shape, np.float32)
    pixels = np.ascontiguousarray(raw.numpy())
    taps = taps.astype(np.float32)
    arrays = (pixels, draws.jitter, factors, draws.order, draws.grey, radius, taps, draws.solarise, out)
    share = math.ceil(len(out) / count)

    def colour(first: int) -> None:
        colour_numba.colour(
            low, high, mean, std, passes, border, *(array[first : first + share] for array in arrays)
        )

    if count == 1:
        colour(0)
    else:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(colour, range(0, len(out), share)))
    return torch.from_numpy(out)


def _by_tensors(
    flat: Tensor, crop: Crop, number: int, key: Key, draws: ColourDraws | None, preprocess: Preprocess
) -> Tensor:
    out = torch.empty(flat.shape, dtype=torch.float32, device=flat.device)
    mean, std = (out.new_tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    shift, gain = -mean / std, 1 / std
    operations = None
    if crop.augment:
        stream = Stream.AUGMENT + number
        drawn = randaugment.draw(key, stream, crop.augment, crop.count, flat.shape[1])
        operations = randaugment.Draws(*(np.repeat(values, crop.frames, axis=0) for values in drawn))
    # sorted by blur, since a chunk's widest kernel is used for all of its images
    order = np.argsort(draws.sigma, kind="stable") if draws else np.arange(len(flat))
    size = (
        max(1, _CHUNK * torch.get_num_threads() // flat[0].numel())
        if flat.device.type == "cpu"
        else len(flat)
    )
    for start in range(0, len(flat), size):
        chosen = order[start : start + size]
        if len(chosen) == 1:  # a slice, where a list of indices would copy
            at = slice(int(chosen[0]), int(chosen[0]) + 1)
        else:
            at = torch.from_numpy(chosen).to(flat.device)
        images = scale(flat[at] if isinstance(at, slice) else flat.index_select(0, at), preprocess)
        if operations:
            chunk = randaugment.Draws(*(values[chosen] for values in operations))
            images = randaugment.apply_(images, chunk, preprocess.mean)
        if draws and crop.colour:
            images = apply_colour(images, crop.colour, ColourDraws(*(values[chosen] for values in draws)))
        images.mul_(gain)  # not `addcmul`, which isn't vectorised where two operands are broadcast
        if isinstance(at, slice):
            torch.add(images, shift, out=out[at])
        else:
            out.index_copy_(0, at, images.add_(shift))
    return out


def speed_notes(plan: Sequence[Crop], channels: int, device: torch.device) -> list[str]:
    """What the views cost for want of Numba; empty where it is installed, or has no part in them."""
    if compiles() or not any(crop.colour and _has_loops(device.type, channels, crop) for crop in plan):
        return []
    return [f"colours are changed several times slower without Numba: {install_command('fast')} brings it"]


def describe(plan: Sequence[Crop], channels: int) -> list[str]:
    """A line for each kind of crop: its augmentations, and those left out because images are not RGB."""
    lines = []
    for crop in plan:
        low, high = crop.scale
        text = f"{crop.count} x {crop.size} px, {low:.0%}-{high:.0%} of the area"
        text += f", alike in {crop.frames} frames" * (crop.frames > 1)
        parts = [crop.resample] if crop.resample != "bicubic" else []
        parts += [f"flip {crop.flip_p:g}"] if crop.flip_p else []
        left_out = []
        if a := crop.augment:
            operations = randaugment.available(channels)
            strength = f"strength {a.magnitude:g} of 10, p {a.p:g} each"
            parts.append(f"{a.count} of RandAugment's {len(operations)} operations ({strength})")
            left_out += [f"RandAugment's {name}" for name in randaugment.OPERATIONS if name not in operations]
        if crop.colour:
            _describe_colour(crop.colour, parts, parts if channels == 3 else left_out)
        if s := crop.spectrum:
            low, high = s.snr
            parts.append(f"pauses of up to {s.pause:.0%} {s.pause_p:g}")
            parts.append(f"level {s.level:g} dB, tilt {s.tilt:g} dB, range {s.contrast:g}")
            parts.append(f"noise {low:g} to {high:g} dB below {s.noise_p:g}")
        if crop.erase_p:
            parts.append(f"a rectangle erased {crop.erase_p:g}")
        text += ": " + (", ".join(parts) or "no other change")
        if left_out:
            text += f"; left out on {channels} channel{'s' * (channels != 1)}: " + ", ".join(left_out)
        lines.append(text)
    return lines


def _describe_colour(colour: Colour, parts: list[str], needs_rgb: list[str]) -> None:
    """Append each change to `parts`, those that need RGB to `needs_rgb`."""
    c = colour
    if c.jitter_p:
        for name in ("brightness", "contrast", "saturation", "hue"):
            if value := getattr(c, name):
                to = needs_rgb if name in ("saturation", "hue") else parts
                to.append(f"{name} {value:g} (p {c.jitter_p:g})")
        if c.jitter_order == "random" and c.brightness + c.contrast + c.saturation + c.hue:
            parts.append("these in random order")
    if c.grey_p:
        needs_rgb.append(f"grey {c.grey_p:g}")
    if c.blur_p:
        how = "by boxes, " if c.blur_kernel == "boxes" else ""
        parts.append(f"blur {c.blur_sigma[0]:g}-{c.blur_sigma[1]:g} px ({how}p {c.blur_p:g})")
    if c.solarise_p:
        parts.append(f"solarise {c.solarise_p:g}")
