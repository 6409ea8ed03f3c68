"""Hashes of images: of their bytes, of their pixels, and of what they look like [Zauner 2010, pHash].

The perceptual hash has a bit for each of the 63 lowest AC coefficients of the DCT of the luminance at 32 x 32
pixels: whether it exceeds their median. Mirroring changes the sign of odd coefficients and turning by 90
degrees transposes them, so the hashes of an image's eight orientations come from one transform.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.fft
from jaxtyping import Bool, Float, Int, UInt64
from PIL import Image

from omma.core.compiled import compiles
from omma.core.device import cores
from omma.core.progress import Progress
from omma.core.protocols import BadImage, Images

SIDE = 32  # pixels of the picture that is transformed
LOW = 8  # coefficients a side that become bits
BITS = LOW * LOW - 1
ENOUGH = 128  # pixels of the shorter side that an image is decoded to
FLAT = 1.0  # standard deviation (of 255) up to which a picture shows nothing
FLAT_SHARE = 0.004  # the same as a share of the largest value, for other types than uint8
LUMINANCE = np.array((0.299, 0.587, 0.114), np.float32)  # of red, green and blue [ITU-R BT.601]
ORIENTATIONS = 8  # as it is, mirrored, upside down, both; then each of them transposed
CHUNK = 256  # images that threads are given at a time
STRIP = 512  # hashes compared with one at a time
BLOCK = 4096  # hashes whose pairs are listed at a time


@dataclass(frozen=True)
class Hashes:
    """What images are compared by before any model sees them; rows are the collection's images."""

    content: tuple[bytes | None, ...]  # digest of the file's bytes; None for arrays and unreadable files
    perceptual: UInt64[np.ndarray, "n 8"]  # of each orientation; the first is that of the image as it is
    usable: Bool[np.ndarray, "n"]  # could be read and shows something
    blank: Bool[np.ndarray, "n"]  # could be read, but shows one value all over
    bad: tuple[tuple[int, str], ...]  # images that cannot be read, and why


def hashes(images: Images, progress: Progress | None = None, threads: int | None = None) -> Hashes:
    """Hash all images in one pass; those that cannot be read are listed."""
    n = len(images)
    content: list[bytes | None] = []
    perceptual, usable, blank = np.zeros((n, ORIENTATIONS), np.uint64), np.zeros(n, bool), np.zeros(n, bool)
    bad: list[tuple[int, str]] = []

    def one(index: int) -> tuple[bytes | None, np.ndarray | None, str]:
        try:
            digest = content_digest(images, index)
            return digest, picture(images.read(index, ENOUGH)), ""
        except BadImage as error:
            return None, None, str(error)

    with ThreadPoolExecutor(threads or min(cores(), 16)) as pool:
        for start in range(0, n, CHUNK):
            rows = range(start, min(start + CHUNK, n))
            for index, (digest, small, reason) in zip(rows, pool.map(one, rows)):
                content.append(digest)
                if small is None:
                    bad.append((index, reason))
                elif np.isnan(small).all():
                    blank[index] = True
                else:
                    usable[index] = True
                    perceptual[index] = perceptual_hashes(small[None])[0]
            if progress:
                progress(rows.stop, n)
    return Hashes(tuple(content), perceptual, usable, blank, tuple(bad))


def content_digest(images: Images, index: int) -> bytes | None:
    """A digest of the image's file; None where images are arrays. Raises BadImage."""
    if not getattr(images, "encoded", False):
        return None
    return hashlib.blake2b(images.content(index), digest_size=16).digest()  # type: ignore[attr-defined]


def pixel_digest(image: np.ndarray) -> bytes:
    """A digest of the decoded pixels, their type and the image's size."""
    digest = hashlib.blake2b(f"{image.dtype} {image.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


# ---------------------------------------------------------------- perceptual
def luminance(image: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Luminance (ITU-R 601) of three channels, the mean of any other number."""
    values = np.nan_to_num(image.astype(np.float32), posinf=0.0, neginf=0.0)
    return values @ LUMINANCE if values.shape[-1] == 3 else values.mean(axis=-1)


def picture(image: np.ndarray, side: int = SIDE) -> Float[np.ndarray, "s s"]:
    """The luminance at `side` x `side` pixels, whatever the aspect; all NaN if it shows nothing."""
    grey = Image.fromarray(luminance(image))
    small = np.asarray(grey.resize((side, side), Image.Resampling.BOX if min(grey.size) >= side else 2))
    flat = FLAT if image.dtype == np.uint8 else FLAT_SHARE * float(np.abs(small).max())
    return np.full_like(small, np.nan) if small.std() <= flat else small


def perceptual_hashes(pictures: Float[np.ndarray, "n s s"]) -> UInt64[np.ndarray, "n 8"]:
    """The perceptual hash of each picture in its eight orientations."""
    low = np.asarray(scipy.fft.dctn(pictures, axes=(1, 2), norm="ortho"))[:, :LOW, :LOW]
    odd = np.where(np.arange(LOW) % 2, -1, 1)
    flips = [low, low * odd, low * odd[:, None], low * odd * odd[:, None]]
    turns = np.stack([*flips, *(each.transpose(0, 2, 1) for each in flips)], axis=1)
    values = turns.reshape(len(low), ORIENTATIONS, -1)[..., 1:]  # without the mean
    bits = values > np.median(values, axis=-1, keepdims=True)
    packed = np.packbits(np.pad(bits, ((0, 0), (0, 0), (1, 0))), axis=-1)
    return packed.view(">u8")[..., 0].astype(np.uint64)


def distances(a: UInt64[np.ndarray, "p 8"], b: UInt64[np.ndarray, "p 8"]) -> Int[np.ndarray, "p"]:
    """Bits in which two images differ in the orientation where they differ least."""
    return np.bitwise_count(a[:, :1] ^ b).min(axis=1).astype(np.int64)


def near_pairs(
    a: UInt64[np.ndarray, "n 8"], limit: int, orientations: int = ORIENTATIONS
) -> Iterator[tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"], Int[np.ndarray, "p"]]]:
    """Rows i < j that differ in at most `limit` bits, and in how many, a block at a time.

    orientations: the first so many of j are compared with i as it is; 1 of them: neither mirrored nor turned.
    """
    base = np.ascontiguousarray(a[:, :orientations].T)
    for start in range(0, len(a), BLOCK):
        first = np.ascontiguousarray(a[start : start + BLOCK, 0])
        rows = _compiled(first, base, limit, start) if compiles() else _near(first, base, limit, start)
        yield rows[:, 0] + start, rows[:, 1], rows[:, 2]


def _compiled(
    first: UInt64[np.ndarray, "m"], base: UInt64[np.ndarray, "o n"], limit: int, start: int
) -> Int[np.ndarray, "p 3"]:
    """`_near` by loops that Numba compiles."""
    from omma.curation.duplicates import hashes_numba

    space = 4 * BLOCK
    while True:
        found = np.empty((space, 3), np.int64)
        count = hashes_numba.near(first, base, limit, start, found)
        if count <= space:
            return found[:count]
        space = count  # the block is compared again with room for all


def _near(
    first: UInt64[np.ndarray, "m"], base: UInt64[np.ndarray, "o n"], limit: int, start: int
) -> Int[np.ndarray, "p 3"]:
    """Pairs within the limit, as row of `first`, row of `base`, bits; what `hashes_numba` does, by arrays.

    base: [orientations, n]. start: the row of base that the first row is; only later ones are compared.
    """
    parts = []
    for left in range(start + 1, base.shape[1], STRIP):
        columns = base[:, left : left + STRIP]
        least = np.full((len(first), columns.shape[1]), 64, np.uint8)
        for orientation in columns:
            np.minimum(least, np.bitwise_count(first[:, None] ^ orientation), out=least)
        i, j = np.nonzero(least <= limit)
        later = left + j > start + i
        parts.append(np.stack([i, left + j, least[i, j]], axis=1)[later])
    found = np.concatenate(parts) if parts else np.zeros((0, 3), np.int64)
    return found[np.lexsort((found[:, 1], found[:, 0]))].astype(np.int64)
