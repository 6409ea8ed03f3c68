"""Faults that pixels alone show: blank, dark, bright, blurred and odd-sized images, beside broken ones.

Each fault has two conditions: an absolute one, which says what the fault is, and one relative to the
collection, beyond CUT robust deviations from its median, since fluorescence is dark and silhouettes are
smooth without fault. All are measured on the image reduced to a shorter side of at most SIDE pixels, of any
number of channels and type of values.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Num

from omma.core.device import cores
from omma.core.progress import Progress
from omma.core.protocols import BadImage, Images, Inaccessible
from omma.core.words import count
from omma.curation.findings import Finding
from omma.curation.robust import FEW, deviations
from omma.data.sources.decode import as_channels, decode, jpeg_size
from omma.data.sources.indexed import IndexedImages

SIDE = 256  # pixels of the shorter side on which images are judged
COARSE = 64  # pixels of the shorter side on which it is judged whether anything is there: noise averages out
CUT = 3.5  # robust deviations from the collection's median [Iglewicz & Hoaglin 1993]
BLANK = 0.01  # deviation of the values, as a share of their range, below which nothing is to be seen ...
BLANK_SHARE = 0.1  # ... if it is also below this share of the collection's median
CONSTANT = 0.002  # deviation below which an image is blank in any collection
DARK = 0.12  # share of the range that 95 % of a dark image's pixels stay below
BRIGHT = 0.88  # share of the range that 95 % of a bright image's pixels lie above
BLURRED = 1.0  # sharpness that images in focus exceed: nothing varies within some 7 pixels
AREA = 4.0  # factor from the median number of pixels
ELONGATED = 2.0  # factor from the median of longer by shorter side
_CHUNK = 32


class Measures(NamedTuple):
    """What was measured of the images that can be read."""

    rows: Int[np.ndarray, "n"]  # which images these are
    sizes: Int[np.ndarray, "n 2"]  # height and width in pixels, as stored
    kinds: np.ndarray  # str [n]: types of the values
    low: Float[np.ndarray, "n c"]  # 5th percentile of each channel
    high: Float[np.ndarray, "n c"]  # 95th percentile
    deviation: Float[np.ndarray, "n c"]  # at COARSE pixels
    sharpness: Float[np.ndarray, "n"]
    bad: tuple[tuple[int, str], ...]  # (image, reason) of the others


@dataclass(frozen=True)
class Judged:
    """The faults that were found, and the thresholds that decided, in words."""

    findings: tuple[Finding, ...]
    thresholds: dict[str, str]
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- measure
def measure(
    images: Images, rows: Int[np.ndarray, "m"] | None = None, progress: Progress | None = None
) -> Measures:
    """Read images in threads and measure each; rows: of some alone. JPEGs are decoded at reduced scale."""
    todo = np.arange(len(images)) if rows is None else np.asarray(rows)
    chunks = [todo[at : at + _CHUNK] for at in range(0, len(todo), _CHUNK)]
    found, bad = list[tuple](), list[tuple[int, str]]()
    with ThreadPoolExecutor(min(cores(), 16)) as pool:
        for done, answers in zip(
            itertools.accumulate(map(len, chunks)), pool.map(lambda c: [*_each(images, c)], chunks)
        ):
            found += [answer for answer in answers if len(answer) > 2]
            bad += [(answer[0], answer[1]) for answer in answers if len(answer) == 2]
            if progress:
                progress(done, len(todo))
    columns = [np.array(column) for column in zip(*found)] or [np.zeros(0)] * 7
    at, sizes, kinds, low, high, deviation, sharp = columns
    shape = (len(found), images.channels)
    return Measures(
        at.astype(np.int64), sizes.reshape(-1, 2).astype(np.int64), kinds.astype(str), low.reshape(shape),
        high.reshape(shape), deviation.reshape(shape), sharp.astype(np.float64), tuple(bad),
    )  # fmt: skip


def _each(images: Images, rows: np.ndarray) -> Iterator[tuple]:
    for row in rows.tolist():
        try:
            pixels, size = _read(images, row)
        except BadImage as error:
            yield row, str(error)
            continue
        small = reduced(pixels)
        low, high = np.percentile(small.reshape(-1, small.shape[-1]), (5, 95), axis=0)
        yield row, size, pixels.dtype.name, low, high, reduced(small, COARSE).std((0, 1)), sharpness(small)


def _read(images: Images, row: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels, of a JPEG at reduced scale, and the height and width of the image as it is stored."""
    if not (isinstance(images, IndexedImages) and images.encoded and images.kind == "image"):
        pixels = images.read(row)
        return pixels, pixels.shape[:2]
    data = images.content(row)
    pixels = as_channels(decode(data, images.channels, SIDE), images.channels)
    return pixels, jpeg_size(data) or pixels.shape[:2]


def reduced(image: Num[np.ndarray, "h w c"], side: int = SIDE) -> Float[np.ndarray, "y x c"]:
    """The image in fp32 with a shorter side of at most `side` pixels, averaged; never enlarged."""
    height, width = image.shape[:2]
    if min(height, width) <= side:
        return image.astype(np.float32)
    scale = side / min(height, width)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    planes = torch.from_numpy(np.ascontiguousarray(image.astype(np.float32).transpose(2, 0, 1)))
    small = torch.nn.functional.interpolate(planes[None], shape, mode="bilinear", antialias=True)[0]
    return small.permute(1, 2, 0).numpy()


def sharpness(image: Float[np.ndarray, "h w c"]) -> float:
    """The 99th percentile of the Laplacian's magnitude, by the values' deviation; 0 for a constant image.

    Of the mean over channels. The percentile in place of the variance [Pech-Pacheco 2000] asks whether
    anything is in focus, so that a sharp bird before a smooth sky is sharp, and the quotient makes it a
    matter of scale, not of contrast: a wave of n pixels has sqrt(2) (2 - 2 cos(2 pi / n)).
    """
    grey = image.mean(-1)
    deviation = float(grey.std())
    if min(grey.shape) < 3 or deviation <= 1e-6 * max(float(np.abs(grey).max()), 1e-30):
        return 0.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(np.percentile(np.abs(laplacian), 99)) / deviation


# ---------------------------------------------------------------- judge
def judge(found: Measures) -> Judged:
    """The faults of the images that were measured; of fewer than FEW, only broken and blank ones."""
    findings = [
        Finding(row, "inaccessible" if Inaccessible.is_reason(reason) else "broken", 1.0, reason)
        for row, reason in found.bad
    ]
    thresholds, notes = dict[str, str](), list[str]()
    n = len(found.rows)
    if not n:
        return Judged(tuple(findings), thresholds)
    low, high, contrast = _scaled(found)
    usual = float(np.median(contrast))
    limit = max(CONSTANT, min(BLANK, BLANK_SHARE * usual))
    blank = contrast <= limit
    thresholds["blank"] = (
        f"values deviate by at most {limit:.2%} of their range (the smaller of {BLANK:.0%} and a tenth of "
        f"the median, {usual:.1%})"
    )
    for k in np.flatnonzero(blank):
        detail = f"its values deviate by {contrast[k]:.2%} of the collection's range"
        findings.append(Finding(int(found.rows[k]), "blank", 1 - contrast[k] / limit, detail))
    if n < FEW:
        notes.append(f"too few to say what is dark, bright, blurred or odd-sized: {count(n, 'image')}")
        return Judged(tuple(findings), thresholds, tuple(notes))
    for each in (_exposure(low, high), _blurred(found, contrast), _sizes(found)):
        for name, values, flagged, text, how in each:
            thresholds[name] = how
            for k in np.flatnonzero(flagged & ~blank if name != "odd-sized" else flagged).tolist():
                findings.append(Finding(int(found.rows[k]), name, float(values[k]), text(k)))
    return Judged(tuple(findings), thresholds, tuple(notes))


_Fault = tuple[
    str, np.ndarray, np.ndarray, Callable[[int], str], str
]  # name, score, flags, detail, threshold


def _exposure(low: np.ndarray, high: np.ndarray) -> list[_Fault]:
    darkness, brightness = deviations(-high, 0.02), deviations(low, 0.02)
    return [
        (
            "dark", darkness, (high < DARK) & (darkness > CUT),
            lambda k: f"95 % of its pixels lie below {high[k]:.1%} of the collection's range",
            f"95 % of the pixels lie below {DARK:.0%} of the range, and {CUT} robust deviations below the "
            f"collection's median, {np.median(high):.0%}",
        ),
        (
            "bright", brightness, (low > BRIGHT) & (brightness > CUT),
            lambda k: f"95 % of its pixels lie above {low[k]:.1%} of the collection's range",
            f"95 % of the pixels lie above {BRIGHT:.0%} of the range, and {CUT} robust deviations above the "
            f"collection's median, {np.median(low):.0%}",
        ),
    ]  # fmt: skip


def _blurred(found: Measures, contrast: np.ndarray) -> list[_Fault]:
    values, seen = found.sharpness, contrast > CONSTANT
    blur = np.full(len(values), -np.inf)
    logs = np.log(np.maximum(values, 1e-3))
    if seen.any():
        blur[seen] = deviations(-logs[seen], 0.1)
    usual = float(np.exp(np.median(logs[seen]))) if seen.any() else 0.0
    how = (
        f"sharpness (99th percentile of the Laplacian by the image's deviation, at {SIDE} px) below "
        f"{BLURRED}, and {CUT} robust deviations of its logarithm below the collection's median, {usual:.2f}"
    )
    flagged = (values < BLURRED) & (blur > CUT)
    return [
        ("blurred", blur, flagged, lambda k: f"sharpness {values[k]:.2f} where {usual:.2f} is usual", how)
    ]


def _sizes(found: Measures) -> list[_Fault]:
    height, width = found.sizes.T.astype(np.float64)
    area, elongation = np.log(height * width), np.log(np.maximum(height, width) / np.minimum(height, width))
    by_area, by_shape = np.abs(deviations(area, 0.1)), np.abs(deviations(elongation, 0.1))
    median_area, median_shape = float(np.median(area)), float(np.median(elongation))
    odd_area = (np.abs(area - median_area) > np.log(AREA)) & (by_area > CUT)
    odd_shape = (elongation - median_shape > np.log(ELONGATED)) & (by_shape > CUT)
    side = float(np.exp(median_area / 2))
    how = (
        f"{AREA:.0f} times more or fewer pixels than the median ({side:,.0f} squared), or "
        f"{ELONGATED:.0f} times as elongated as the median ({np.exp(median_shape):.2f} to 1), and {CUT} "
        "robust deviations away"
    )

    def text(k: int) -> str:
        return f"{width[k]:.0f} x {height[k]:.0f} px where {side:,.0f} squared is usual"

    worst = np.maximum(np.where(odd_area, by_area, 0), np.where(odd_shape, by_shape, 0))
    return [("odd-sized", worst, odd_area | odd_shape, text, how)]


def contrasts(found: Measures) -> Float[np.ndarray, "n"]:
    """The largest channel's deviation in each image, as a share of the range of values, 0 to 1 and above."""
    return _scaled(found)[2]


def _scaled(found: Measures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The percentiles, means over channels, and the largest channel's deviation, as shares of the range [n].

    The range of 8 bits is theirs, 0 to 255; that of other values, which a camera may fill to a tenth, runs
    for each channel from the images' 1st percentile of `low` to their 99th of `high`.
    """
    low, high, contrast = (np.zeros(len(found.rows)) for _ in range(3))
    for kind in np.unique(found.kinds):
        own = found.kinds == kind
        if kind == "uint8":
            start, end = np.zeros(found.low.shape[1]), np.full(found.low.shape[1], 255.0)
        else:
            start, end = np.percentile(found.low[own], 1, axis=0), np.percentile(found.high[own], 99, axis=0)
        span = np.where(end > start, end - start, np.inf)
        low[own] = ((found.low[own] - start) / span).mean(1)
        high[own] = ((found.high[own] - start) / span).mean(1)
        contrast[own] = (found.deviation[own] / span).max(1)
    return low, high, contrast
