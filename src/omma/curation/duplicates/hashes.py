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
from numba import njit
from PIL import Image

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
        space = 4 * BLOCK
        while True:
            found = np.empty((space, 3), np.int64)
            count = _near(first, base, limit, start, found)
            if count <= space:
                break
            space = count  # the block is compared again with room for all
        rows = found[:count]
        yield rows[:, 0] + start, rows[:, 1], rows[:, 2]


@njit(cache=True, nogil=True, inline="always")
def _bits(x: np.uint64) -> np.uint64:
    """Bits set [Warren, Hacker's Delight, 5-1]; compiled to the processor's instruction."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@njit(cache=True, nogil=True)
def _near(a: np.ndarray, b: np.ndarray, limit: int, start: int, found: np.ndarray) -> int:
    """Write pairs within the limit to `found`; their number, which may exceed its length.

    b: [orientations, n]. start: the row of b that a's first row is; only later ones are compared with it.
    """
    count, n = 0, b.shape[1]
    least = np.empty(STRIP, np.uint64)
    for i in range(a.shape[0]):
        for left in range(start + i + 1, n, STRIP):
            width = min(STRIP, n - left)
            least[:] = 64
            for k in range(b.shape[0]):  # one orientation of many images at a time: vector instructions
                for j in range(width):
                    least[j] = min(least[j], _bits(a[i] ^ b[k, left + j]))
            for j in range(width):
                if least[j] <= np.uint64(limit):
                    if count < found.shape[0]:
                        found[count, 0], found[count, 1], found[count, 2] = i, left + j, least[j]
                    count += 1
    return count
