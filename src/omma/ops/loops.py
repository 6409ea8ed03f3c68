"""Loops over pixels that Numba compiles for this machine's processor, where tensor operations pass too often
over memory. CPU only; what each does is written with tensors elsewhere in `ops`, and tests hold both equal.

A first call compiles for some seconds; the code is kept on disk (Numba's `cache`) for later processes. The
functions release the GIL, so that threads may share a batch.
"""

import math

import numpy as np
from jaxtyping import Bool, Float32, Int64, Num, UInt8
from numba import float32, njit

from omma.ops.colour import LUMA

# Sums may be reordered and fused, so that loops become vectors; NaN and infinity keep their meaning.
_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})

_RED, _GREEN, _BLUE = (float32(weight) for weight in LUMA)
_ZERO, _ONE, _TINY = float32(0), float32(1), float32(1e-12)


@_compiled
def _clip(x, low, high):
    x = x if x > low else low  # NaN becomes low
    return x if x < high else high


# ---------------------------------------------------------------- colour
@_compiled
def _jitter(image, factors):
    """`colour`'s brightness_, contrast_, saturation_, hue_ on float32 [3, n], in place: two passes."""
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
def _mirrored(at, n):
    period = max(2 * (n - 1), 1)
    at = at % period
    return min(at, period - at) if n > 1 else 0


@_compiled
def _blur(plane, taps, between, padded):
    """`resize.gaussian_blur` of float32 [h, w], in place; taps [radius + 1], from the centre outwards."""
    h, w = plane.shape
    radius = len(taps) - 1
    for y in range(h):
        out, row = between[y], plane[y]
        for x in range(w):
            out[x] = taps[0] * row[x]
        for k in range(1, radius + 1):
            above, below, tap = plane[_mirrored(y - k, h)], plane[_mirrored(y + k, h)], taps[k]
            for x in range(w):
                out[x] += tap * (above[x] + below[x])
    for y in range(h):
        out, row = plane[y], between[y]
        padded[radius : radius + w] = row
        for k in range(1, radius + 1):
            padded[radius - k] = row[_mirrored(-k, w)]
            padded[radius + w - 1 + k] = row[_mirrored(w - 1 + k, w)]
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
def colour(
    low: Float32[np.ndarray, "3"],
    high: Float32[np.ndarray, "3"],
    mean: Float32[np.ndarray, "3"],
    std: Float32[np.ndarray, "3"],
    raw: Num[np.ndarray, "n 3 h w"],
    jitter: Bool[np.ndarray, "n"],
    factors: Float32[np.ndarray, "n 4"],
    grey: Bool[np.ndarray, "n"],
    radius: Int64[np.ndarray, "n"],
    taps: Float32[np.ndarray, "n most"],
    solarise: Bool[np.ndarray, "n"],
    out: Float32[np.ndarray, "n 3 h w"],
) -> None:
    """RGB images in raw values, scaled to [0, 1] by `low` and `high`, coloured, normalised into `out`.

    In this order, each on the images that drew it: jitter (factors: brightness, contrast, saturation, hue
    shift in turns), grey, blur (taps from the centre outwards, `radius` on each side; 0: none), solarise. An
    image at a time, which stays in the processor's cache from the first operation to the last. Equal to the
    functions of `ops.colour` and `ops.resize.gaussian_blur` within 1e-4. Arrays are C-contiguous.
    """
    h, w = raw.shape[2:]
    between, padded = np.empty((h, w), np.float32), np.empty(w + 2 * taps.shape[1], np.float32)
    for i in range(len(raw)):
        image = out[i].reshape(3, h * w)
        for c in range(3):
            values, scaled = raw[i, c].reshape(h * w), image[c]
            base, scale = low[c], _ONE / (high[c] - low[c])
            for j in range(h * w):
                scaled[j] = _clip((float32(values[j]) - base) * scale, _ZERO, _ONE)
        if jitter[i]:
            _jitter(image, factors[i])
        if grey[i]:
            reds, greens, blues = image[0], image[1], image[2]
            for j in range(h * w):
                reds[j] = greens[j] = blues[j] = _RED * reds[j] + _GREEN * greens[j] + _BLUE * blues[j]
        for c in range(3):
            if radius[i]:
                _blur(out[i, c], taps[i, : radius[i] + 1], between, padded)
            scaled, gain, shift = image[c], _ONE / std[c], -mean[c] / std[c]
            if solarise[i]:
                for j in range(h * w):
                    scaled[j] = gain * min(scaled[j], _ONE - scaled[j]) + shift
            else:
                for j in range(h * w):
                    scaled[j] = gain * scaled[j] + shift


# ---------------------------------------------------------------- cutting
_BLOCK = 16  # rows or columns that are turned over at a time: a cache line of float32


@_compiled
def _taps(length, size, flip):
    """Rows of `resize.resampling` (bicubic) without their zeros: where each begins, weights [size, 4n]."""
    scale = length / size
    stretch = max(scale, 1.0)
    reach = 2 * stretch
    first = np.empty(size, np.int64)
    weights = np.zeros((size, 4 * math.ceil(reach / 2)), np.float32)
    for i in range(size):
        centre = ((size - 1 - i if flip else i) + 0.5) * scale - 0.5
        start, stop = max(0, math.floor(centre - reach) + 1), min(length, math.ceil(centre + reach))
        first[i], total = start, 0.0
        for k in range(stop - start):
            x = abs(start + k - centre) / stretch
            weight = (1.5 * x - 2.5) * x * x + 1 if x < 1 else -0.5 * (2 - x) ** 2 * (x - 1)
            weights[i, k] = weight
            total += weight
        for k in range(stop - start):
            weights[i, k] /= total
    return first, weights


@_compiled
def _weighted(rows, first, step, last, start, stop, weights, out):
    """out = sum_k weights[k] rows[first + k step, start:stop]; beyond `last` weights are 0."""
    for k in range(0, len(weights), 4):
        at = first + k * step
        a, b = rows[min(at, last), start:stop], rows[min(at + step, last), start:stop]
        c, d = rows[min(at + 2 * step, last), start:stop], rows[min(at + 3 * step, last), start:stop]
        p, q, r, s = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        if k == 0:
            for i in range(len(out)):
                out[i] = p * float32(a[i]) + q * float32(b[i]) + r * float32(c[i]) + s * float32(d[i])
        else:
            for i in range(len(out)):
                out[i] += p * float32(a[i]) + q * float32(b[i]) + r * float32(c[i]) + s * float32(d[i])


@_compiled
def _turn(block, out):
    """out = block transposed."""
    if len(block) == _BLOCK:  # a constant, which unrolls the inner loop
        for i in range(len(out)):
            for j in range(_BLOCK):
                out[i, j] = block[j, i]
    else:
        for i in range(len(out)):
            for j in range(len(block)):
                out[i, j] = block[j, i]


@_compiled
def cut(
    image: UInt8[np.ndarray, "h w c"],
    boxes: Int64[np.ndarray, "v 4"],
    flips: Bool[np.ndarray, "v"],
    size: int,
) -> UInt8[np.ndarray, "v c size size"]:
    """Cut boxes (top, left, height, width), resize them (bicubic, antialiased), then mirror where `flips`.

    `resize.crop_resize`, rounded and clipped to 0..255: two passes of 32-bit sums, first over rows, then over
    columns, with the image turned over in between, so that both run along memory. Arrays are C-contiguous.
    """
    height, width, channels = image.shape
    pixels = image.reshape(height, width * channels)
    widest = boxes[:, 3].max()
    block = np.empty((_BLOCK, max(widest * channels, size)), np.float32)
    turned = np.empty((widest * channels, size), np.float32)
    rounded = np.empty((_BLOCK, size), np.uint8)
    out = np.empty((len(boxes), channels, size, size), np.uint8)
    for v in range(len(boxes)):
        top, left, h, w = boxes[v]
        first, weights = _taps(h, size, False)
        start, stop = left * channels, (left + w) * channels
        for y in range(0, size, _BLOCK):
            n = min(_BLOCK, size - y)
            for j in range(n):
                at, row = top + first[y + j], block[j, : stop - start]
                _weighted(pixels, at, 1, top + h - 1, start, stop, weights[y + j], row)
            _turn(block[:n, : stop - start], turned[: stop - start, y : y + n])
        first, weights = _taps(w, size, flips[v])
        for c in range(channels):
            for x in range(0, size, _BLOCK):
                n = min(_BLOCK, size - x)
                for j in range(n):
                    at, last, row = first[x + j] * channels + c, (w - 1) * channels + c, block[j, :size]
                    _weighted(turned, at, channels, last, 0, size, weights[x + j], row)
                    whole = rounded[j]
                    for i in range(size):
                        whole[i] = np.uint8(np.int32(_clip(row[i] + float32(0.5), _ZERO, float32(255))))
                _turn(rounded[:n], out[v, c, :, x : x + n])
    return out
