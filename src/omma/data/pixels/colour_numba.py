"""Loops over pixels, compiled by Numba, which pass over memory less often than tensor operations. CPU only.

`colour` and `resize` have the same operations for tensors; tests require equal results. A first call compiles
for some seconds; later processes use Numba's cache on disk. The functions release the GIL, so that threads
may share a batch.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int64, Num
from numba import float32

from omma.core.compiled import compiled
from omma.data.pixels.colour import LUMA

# Sums may be reordered and fused, so that loops become vectors; NaN and infinity keep their meaning.
_compiled = compiled(error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})

BORDERS = ("reflect", "edge", "zero")

_RED, _GREEN, _BLUE = (float32(weight) for weight in LUMA)
_ZERO, _ONE, _TINY = float32(0), float32(1), float32(1e-12)


@_compiled
def _clip(x, low, high):
    x = x if x > low else low  # NaN becomes low
    return x if x < high else high


@_compiled
def _jitter_as_listed(image, factors):
    """In the order of `factors`: two passes."""
    brightness, contrast, saturation, shift = factors[0], factors[1], factors[2], factors[3]
    reds, greens, blues = image[0], image[1], image[2]
    n = len(reds)
    total = _ZERO
    for i in range(n):
        reds[i] = red = min(reds[i] * brightness, _ONE)
        greens[i] = green = min(greens[i] * brightness, _ONE)
        blues[i] = blue = min(blues[i] * brightness, _ONE)
        total += _RED * red + _GREEN * green + _BLUE * blue
    mean = (_ONE - contrast) * total / float32(n)
    for i in range(n):
        red = _clip(contrast * reds[i] + mean, _ZERO, _ONE)
        green = _clip(contrast * greens[i] + mean, _ZERO, _ONE)
        blue = _clip(contrast * blues[i] + mean, _ZERO, _ONE)
        luma = (_ONE - saturation) * (_RED * red + _GREEN * green + _BLUE * blue)
        red = _clip(saturation * red + luma, _ZERO, _ONE)
        green = _clip(saturation * green + luma, _ZERO, _ONE)
        blue = _clip(saturation * blue + luma, _ZERO, _ONE)
        low, high = min(min(red, green), blue), max(max(red, green), blue)
        chroma = high - low
        turns = (high - low - low + green + blue - red) / max(float32(6) * chroma, _TINY)
        turns = (turns if green >= blue else -turns) + shift
        turns = turns - _ONE if turns > float32(0.5) else turns
        turns = turns + _ONE if turns < float32(-0.5) else turns
        hue = float32(6) * turns
        reds[i] = low + chroma * _clip(float32(2) - abs(hue), _ZERO, _ONE)
        greens[i] = low + chroma * (_clip(hue, _ZERO, _ONE) + _clip(float32(-2) - hue, _ZERO, _ONE))
        blues[i] = low + chroma * (_clip(-hue, _ZERO, _ONE) + _clip(hue - float32(2), _ZERO, _ONE))


@_compiled
def _turned(red, green, blue, shift):
    """`colour.hue_` of one pixel."""
    low, high = min(min(red, green), blue), max(max(red, green), blue)
    chroma = high - low
    turns = (high - low - low + green + blue - red) / max(float32(6) * chroma, _TINY)
    turns = (turns if green >= blue else -turns) + shift
    turns = turns - _ONE if turns > float32(0.5) else turns
    turns = turns + _ONE if turns < float32(-0.5) else turns
    hue = float32(6) * turns
    return (
        low + chroma * _clip(float32(2) - abs(hue), _ZERO, _ONE),
        low + chroma * (_clip(hue, _ZERO, _ONE) + _clip(float32(-2) - hue, _ZERO, _ONE)),
        low + chroma * (_clip(-hue, _ZERO, _ONE) + _clip(hue - float32(2), _ZERO, _ONE)),
    )


@_compiled
def _jitter_in_order(image, factors, order):
    """A pass for each operation, two for contrast."""
    reds, greens, blues = image[0], image[1], image[2]
    n = len(reds)
    for operation in order:
        factor = factors[operation]
        if operation == 0:
            for i in range(n):
                reds[i] = min(reds[i] * factor, _ONE)
                greens[i] = min(greens[i] * factor, _ONE)
                blues[i] = min(blues[i] * factor, _ONE)
        elif operation == 1:
            total = _ZERO
            for i in range(n):
                total += _RED * reds[i] + _GREEN * greens[i] + _BLUE * blues[i]
            mean = (_ONE - factor) * total / float32(n)
            for i in range(n):
                reds[i] = _clip(factor * reds[i] + mean, _ZERO, _ONE)
                greens[i] = _clip(factor * greens[i] + mean, _ZERO, _ONE)
                blues[i] = _clip(factor * blues[i] + mean, _ZERO, _ONE)
        elif operation == 2:
            for i in range(n):
                luma = (_ONE - factor) * (_RED * reds[i] + _GREEN * greens[i] + _BLUE * blues[i])
                reds[i] = _clip(factor * reds[i] + luma, _ZERO, _ONE)
                greens[i] = _clip(factor * greens[i] + luma, _ZERO, _ONE)
                blues[i] = _clip(factor * blues[i] + luma, _ZERO, _ONE)
        else:
            for i in range(n):
                reds[i], greens[i], blues[i] = _turned(reds[i], greens[i], blues[i], factor)


@_compiled
def _jitter(image, factors, order):
    """brightness_, contrast_, saturation_ and hue_ of `colour` (0 to 3) in `order`, in place, on [3, n]."""
    if order[0] == 0 and order[1] == 1 and order[2] == 2:
        _jitter_as_listed(image, factors)
    else:
        _jitter_in_order(image, factors, order)


@_compiled
def _mirrored(at, n):
    period = max(2 * (n - 1), 1)
    at = at % period
    return min(at, period - at) if n > 1 else 0


@_compiled
def _inside(at, n, border):
    """The index that stands for `at`, which may lie outside of [0, n); -1: there are zeros."""
    if border == 0:
        return _mirrored(at, n)
    if border == 1:
        return min(max(at, 0), n - 1)
    return at if 0 <= at < n else -1


@_compiled
def _convolve(plane, taps, border, blurred, padded, zeros):
    h, w = plane.shape
    radius = len(taps) - 1
    for y in range(h):
        out, row = blurred[y], plane[y]
        for x in range(w):
            out[x] = taps[0] * row[x]
        for k in range(1, radius + 1):
            up, down, tap = _inside(y - k, h, border), _inside(y + k, h, border), taps[k]
            above = plane[up] if up >= 0 else zeros
            below = plane[down] if down >= 0 else zeros
            for x in range(w):
                out[x] += tap * (above[x] + below[x])
    for y in range(h):
        out, row = plane[y], blurred[y]
        padded[radius : radius + w] = row
        for k in range(1, radius + 1):
            before, after = _inside(-k, w, border), _inside(w - 1 + k, w, border)
            padded[radius - k] = row[before] if before >= 0 else _ZERO
            padded[radius + w - 1 + k] = row[after] if after >= 0 else _ZERO
        for x in range(w):
            out[x] = taps[0] * row[x]
        for k in range(1, radius + 1):
            left, right, tap = (
                padded[radius - k : radius - k + w],
                padded[radius + k : radius + k + w],
                taps[k],
            )
            for x in range(w):
                out[x] += tap * (left[x] + right[x])


@_compiled
def _blur(plane, taps, passes, border, blurred, padded, zeros):
    """`resize.gaussian_blur` of float32 [h, w], in place; taps [radius + 1], from the centre outwards."""
    for _ in range(passes):
        _convolve(plane, taps, border, blurred, padded, zeros)


@_compiled
def colour(
    low: Float32[np.ndarray, "3"],
    high: Float32[np.ndarray, "3"],
    mean: Float32[np.ndarray, "3"],
    std: Float32[np.ndarray, "3"],
    passes: int,
    border: int,
    raw: Num[np.ndarray, "n 3 h w"],
    jitter: Bool[np.ndarray, "n"],
    factors: Float32[np.ndarray, "n 4"],
    order: Int64[np.ndarray, "n 4"],
    grey: Bool[np.ndarray, "n"],
    radius: Int64[np.ndarray, "n"],
    taps: Float32[np.ndarray, "n most"],
    solarise: Bool[np.ndarray, "n"],
    out: Float32[np.ndarray, "n 3 h w"],
) -> None:
    """RGB images in raw values, scaled to [0, 1] by `low` and `high`, coloured, normalised into `out`.

    In this order, each on the images for which it was drawn: jitter (factors: brightness, contrast,
    saturation, hue shift in turns; order: in which they are applied), grey, blur (taps from the centre
    outwards, `radius` on each side, 0: no blur; `passes` times; border: a number of BORDERS), solarise. One
    image at a time, so that it stays in the processor's cache. Equal to the functions of `colour` and
    `resize.gaussian_blur` within 1e-4. Arrays are C-contiguous.
    """
    h, w = raw.shape[2:]
    blurred, padded = np.empty((h, w), np.float32), np.empty(w + 2 * taps.shape[1], np.float32)
    zeros = np.zeros(w, np.float32)
    for i in range(len(raw)):
        image = out[i].reshape(3, h * w)
        for c in range(3):
            values, scaled = raw[i, c].reshape(h * w), image[c]
            base, scale = low[c], _ONE / (high[c] - low[c])
            for j in range(h * w):
                scaled[j] = _clip((float32(values[j]) - base) * scale, _ZERO, _ONE)
        if jitter[i]:
            _jitter(image, factors[i], order[i])
        if grey[i]:
            reds, greens, blues = image[0], image[1], image[2]
            for j in range(h * w):
                reds[j] = greens[j] = blues[j] = _RED * reds[j] + _GREEN * greens[j] + _BLUE * blues[j]
        for c in range(3):
            if radius[i]:
                _blur(out[i, c], taps[i, : radius[i] + 1], passes, border, blurred, padded, zeros)
            scaled, gain, shift = image[c], _ONE / std[c], -mean[c] / std[c]
            if solarise[i]:
                for j in range(h * w):
                    scaled[j] = gain * min(scaled[j], _ONE - scaled[j]) + shift
            else:
                for j in range(h * w):
                    scaled[j] = gain * scaled[j] + shift
