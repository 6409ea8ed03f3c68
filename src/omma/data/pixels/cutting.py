"""Cutting and resizing of 8-bit images on a CPU: two passes of 16-bit sums, compiled by Numba (ADR 10).

A pass adds up weighted rows, all numbers of a row alike, which fills a processor's vectors; between the
passes and behind the second the image is turned over. Numbers are fixed-point, so that a multiplication of a
vector takes one instruction: pixels have 7 binary places, weights 15; the upper half of a product is kept, 6
places after the first pass and 5 after the second. What that cuts off is half a unit on average, so every
other product is of the negated weight and subtracted. For reductions to a sixteenth the result is within .8
of the exact one, of which .5 are its rounding.
"""

import math
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from llvmlite import ir
from numba import extending, int16, intp, njit, uint8, void

_compiled = njit(cache=True, nogil=True, error_model="numpy")
_intrinsic: Any = extending.intrinsic

_ONE = 1 << 15  # a weight of 1, which as a number of 16 bits it just is not
_STRIP = 512  # numbers of a row that the first pass takes at a time, so that an image's fit the second cache
_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


# ---------------------------------------------------------------- what Numba's own arithmetic makes too wide
@_intrinsic
def _high(context: Any, a: Any, b: Any) -> Any:
    """The upper 16 bits of a product of int16."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        wide = build.mul(build.sext(given[0], _I32), build.sext(given[1], _I32))
        return build.trunc(build.ashr(wide, _I32(16)), _I16)

    return int16(int16, int16), code


@_intrinsic
def _plus(context: Any, a: Any, b: Any) -> Any:
    """A sum of int16."""
    return int16(int16, int16), lambda context, build, signature, given: build.add(*given)


@_intrinsic
def _minus(context: Any, a: Any, b: Any) -> Any:
    """A difference of int16."""
    return int16(int16, int16), lambda context, build, signature, given: build.sub(*given)


@_intrinsic
def _byte(context: Any, a: Any) -> Any:
    """int16 with 5 binary places, rounded to uint8."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        near = build.ashr(build.add(given[0], _I16(16)), _I16(5))
        near = build.select(build.icmp_signed("<", near, _I16(0)), _I16(0), near)
        near = build.select(build.icmp_signed(">", near, _I16(255)), _I16(255), near)
        return build.trunc(near, _I8)

    return uint8(int16), code


def _turns(n: int, number: ir.IntType) -> Any:
    """A function that turns n x n numbers over: from `src` (flat), rows `ld` apart from `at` on, to `dst`."""

    @_intrinsic
    def turn(context: Any, src: Any, at: Any, ld: Any, dst: Any, to: Any, apart: Any) -> Any:
        def code(context: Any, build: Any, signature: Any, given: Any) -> None:
            vector = ir.VectorType(number, n)

            def row(which: int, i: int) -> Any:
                array = context.make_array(signature.args[which])(context, build, given[which])
                start = build.add(given[which + 1], build.mul(given[which + 2], given[which + 1].type(i)))
                return build.bitcast(build.gep(array.data, [start]), vector.as_pointer())

            def zipped(a: Any, b: Any, first: int) -> Any:
                order = [place for k in range(first, first + n // 2) for place in (k, n + k)]
                return build.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, n), order))

            rows = [build.load(row(0, i), align=number.width // 8) for i in range(n)]
            for _ in range(int(math.log2(n))):  # each zips the upper half with the lower one
                pairs = zip(rows[: n // 2], rows[n // 2 :], strict=True)
                rows = [zipped(a, b, first) for a, b in pairs for first in (0, n // 2)]
            for i in range(n):
                build.store(rows[i], row(3, i), align=number.width // 8)

        return void(src, intp, intp, dst, intp, intp), code

    return turn


_turn_8, _turn_16 = _turns(8, _I16), _turns(16, _I8)


# ---------------------------------------------------------------- the passes
@_compiled
def _bilinear(d):
    return max(1 - d, 0.0)


@_compiled
def _bicubic(d):
    """Keys' cubic convolution (1981), a = -1/2."""
    if d < 1:
        return (1.5 * d - 2.5) * d * d + 1
    return ((-0.5 * d + 2.5) * d - 4) * d + 2 if d < 2 else 0.0


@_compiled
def _weigh(length, size, cubic, flip):
    """For each of `size` results the first of `length` rows that it sums, and weights, by turns negated.

    Row -1 stands for row 0, and those behind the last for the last: there a weight above 1 has two parts.
    The number of weights is even.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    reach = (2 if cubic else 1) * stretch
    first, weights = np.empty(size, np.int64), np.zeros((size, int(2 * reach) + 4), np.int16)
    exact, whole = np.empty(weights.shape[1]), np.empty(weights.shape[1], np.int64)
    most = 1
    for o in range(size):
        centre = ((size - 1 - o if flip else o) + 0.5) * scale
        low, end = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), length)
        n, total, best = end - low, 0.0, 0
        for k in range(n):
            d = abs(low + k + 0.5 - centre) / stretch
            exact[k] = _bicubic(d) if cubic else _bilinear(d)
            total += exact[k]
            best = k if exact[k] > exact[best] else best
        rest = _ONE
        for k in range(n):
            whole[k] = int(np.rint(exact[k] / total * _ONE))
            rest -= whole[k]
        whole[best] += rest
        above = whole[best] - (_ONE - 1)
        shift = 0
        if above > 0:
            whole[best] = _ONE - 1
            if above > 1 and low + best == 0:
                shift = 1
                weights[o, 0] = above
            elif above > 1:
                weights[o, n] = above
        for k in range(n):
            weights[o, shift + k] = whole[k]
        first[o] = low - shift
        most = max(most, n + (above > 1))
    weights[:, 1::2] *= -1
    return first, weights[:, : most + most % 2].copy()


@_compiled
def _sum_rows(rows, first, weights, width, out):
    """out[o] = the sum of what `_weigh` says, of the first `width` numbers of rows."""
    last, taps = len(rows) - 1, weights.shape[1]
    for o in range(len(first)):
        to, at, w = out[o], first[o], weights[o]
        for j in range(width):
            to[j] = 0
        for k in range(0, taps - 3, 4):
            a, b, c, d = w[k], w[k + 1], w[k + 2], w[k + 3]
            one, two = rows[min(max(at + k, 0), last)], rows[min(at + k + 1, last)]
            three, four = rows[min(at + k + 2, last)], rows[min(at + k + 3, last)]
            for j in range(width):
                some, more = (
                    _minus(_high(one[j], a), _high(two[j], b)),
                    _minus(_high(three[j], c), _high(four[j], d)),
                )
                to[j] = _plus(to[j], _plus(some, more))
        for k in range(taps // 4 * 4, taps, 2):
            a, b = w[k], w[k + 1]
            one, two = rows[min(max(at + k, 0), last)], rows[min(at + k + 1, last)]
            for j in range(width):
                to[j] = _plus(to[j], _minus(_high(one[j], a), _high(two[j], b)))


@_compiled
def _cut(image, top, left, height, width, cubic, flip, out):
    channels, high, wide = out.shape
    full_high, full_wide = (high + 15) // 16 * 16, (wide + 15) // 16 * 16
    numbers = width * channels
    flat = image.reshape(image.shape[0], image.shape[1] * channels)
    first, weights = _weigh(height, high, cubic, False)
    turned = np.empty(((numbers + 7) // 8 * 8, full_high), np.int16)
    strip, summed = np.empty((height, _STRIP), np.int16), np.empty((full_high, _STRIP), np.int16)
    for start in range(0, numbers, _STRIP):
        count = min(_STRIP, numbers - start)
        for y in range(height):
            begin = left * channels + start
            line, pixels = strip[y], flat[top + y, begin : begin + count]
            for j in range(count):
                line[j] = int16(pixels[j]) << 7
        _sum_rows(strip, first, weights, count, summed)
        for i in range(0, full_high, 8):
            for j in range(0, count, 8):
                _turn_8(summed, i * _STRIP + j, _STRIP, turned, (start + j) * full_high + i, full_high)
    first, weights = _weigh(width, wide, cubic, flip)
    columns = turned[:numbers].reshape(width, channels * full_high)
    sums = np.empty((full_wide, channels * full_high), np.int16)
    _sum_rows(columns, first, weights, channels * full_high, sums)
    pixels = np.empty((full_wide, channels * full_high), np.uint8)
    for x in range(wide):
        line, to = sums[x], pixels[x]
        for j in range(channels * full_high):
            to[j] = _byte(line[j])
    whole = full_high == high and full_wide == wide
    result = out if whole else np.empty((channels, full_high, full_wide), np.uint8)
    for i in range(0, full_wide, 16):
        for j in range(0, channels * full_high, 16):
            _turn_16(
                pixels,
                i * channels * full_high + j,
                channels * full_high,
                result,
                j * full_wide + i,
                full_wide,
            )
    if not whole:
        out[:] = result[:, :high, :wide]


def cut_into(
    out: UInt8[np.ndarray, "c height width"],
    image: UInt8[np.ndarray, "h w c"],
    box: tuple[int, int, int, int],
    filter: Literal["bilinear", "bicubic"],
    flip: bool = False,
) -> None:
    """Cut a box (top, left, height, width) of an image, resize it to out's size, antialiased, and mirror it.

    Equal to `resize.crop_resize`, rounded, within 1. Raises ValueError if the box is empty or leaves the
    image, or out is not C-contiguous or has other channels: loops do not look where they write.
    """
    top, left, height, width = box
    h, w, channels = image.shape
    if not (0 <= top < top + height <= h and 0 <= left < left + width <= w):
        raise ValueError(f"box {box} (top, left, height, width) is not inside of an image of {h} x {w}")
    if not out.flags.c_contiguous or len(out) != channels:
        raise ValueError(f"out {out.shape}, strides {out.strides}: [{channels}, height, width] in C's order")
    _cut(np.ascontiguousarray(image), top, left, height, width, filter == "bicubic", flip, out)
