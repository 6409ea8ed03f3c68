"""Counter-based random numbers, Philox-4x32-10 [Salmon et al. 2011], vectorised over the images of a batch.

A number is a pure function of (seed, epoch, index, stream, position). There is no state, so the numbers do
not depend on the order of the images, the other images of the batch, or restarts.
"""

from collections.abc import Callable
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64, UInt32
from torch import Tensor

from omma.core.protocols import Key


class Stream(IntEnum):
    """The purpose of a draw, each with 256 consecutive streams: add a crop's or a layer's number."""

    BOX = 0x0100  # the boxes of crops
    FLIP = 0x0200
    COLOUR = 0x0300
    MASK = 0x0400  # which patches a method masks
    METHOD = 0x0500  # anything else that a method draws for an image
    AUGMENT = 0x0700  # RandAugment's operations
    ERASE = 0x0800  # random erasing
    MIX = 0x0900  # how a pair of images is mixed
    TEXT = 0x0A00  # which of an image's captions is read
    ORDER = 0x0E00  # of a view's changes of colour
    SPECTRUM = 0x0D00  # changes of a sound's level, spectrum and noise
    FRAMES = 0x0C00  # which frames of a sequence go together
    SHOTS = 0x0B00  # which images of a class are labelled where only a few are


# [Salmon 2011, section 3.3]: multipliers of the two S-boxes, Weyl increments of the key
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_BLOCKS = 1 << 16  # blocks of four words that one stream holds for one image
_SHUFFLE = 0x5A  # separates the order of blocks from the order of images


def philox(counter: UInt32[np.ndarray, "4 *n"], key: tuple[int, int]) -> UInt32[np.ndarray, "4 *n"]:
    """Ten rounds of Philox-4x32 on many counters that share a key (two 32-bit words)."""
    # words live in uint64, so that a product keeps its high half
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c2 = (p1 >> _32) ^ c1 ^ np.uint64(k0), (p0 >> _32) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def bits(key: Key, stream: int, n: int) -> UInt32[np.ndarray, "b n"]:
    """n random 32-bit words for each image.

    Counter: (stream, block) | epoch | index, low word | index, high word. Key: the seed.
    """
    blocks = -(-n // 4)
    if not 0 <= stream < 1 << 16:
        raise ValueError(f"stream={stream}: must be in [0, 65536)")
    if blocks > _BLOCKS:
        raise ValueError(f"n={n}: a stream holds {4 * _BLOCKS} numbers an image; use further streams")
    epoch, index = (np.asarray(v, dtype=np.uint64)[:, None] for v in (key.epoch, key.index))
    counter = np.empty((4, len(index), blocks), dtype=np.uint32)
    counter[0] = (stream << 16) + np.arange(blocks, dtype=np.uint32)
    counter[1] = epoch & _LOW
    counter[2] = index & _LOW
    counter[3] = index >> _32
    words = philox(counter, (key.seed & 0xFFFFFFFF, (key.seed >> 32) & 0xFFFFFFFF))
    return np.moveaxis(words, 0, -1).reshape(len(index), 4 * blocks)[:, :n]


def uniform(key: Key, stream: int, n: int) -> Float32[np.ndarray, "b n"]:
    """n numbers for each image, uniform in [0, 1): multiples of 2^-24, so that float32 holds them exactly."""
    return (bits(key, stream, n) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def permutations(key: Key, stream: int, n: int) -> Int64[np.ndarray, "b n"]:
    """One random permutation of 0..n-1 for each image."""
    return np.argsort(bits(key, stream, n), axis=1, kind="stable").astype(np.int64, copy=False)


def fill(
    key: Key, stream: int, shape: tuple[int, ...], device: torch.device | str, draw_: Callable[..., object]
) -> Float[Tensor, "b *shape"]:
    """Very many numbers for each image: `draw_(rows, generator=...)` writes them in rank, image by image.

    Philox gives each image a seed for the device's torch generator, so that an image's numbers depend neither
    on the rest of the batch nor on earlier draws. They differ between kinds of devices.
    """
    words = bits(key, stream, 2).astype(np.uint64)
    seeds = (words[:, 0] << np.uint64(31)) | (words[:, 1] >> np.uint64(1))  # 63 bits
    out = torch.empty(len(seeds), *shape, device=device)
    generator = torch.Generator(device)
    for image, seed in zip(out, seeds.tolist(), strict=True):
        draw_(image, generator=generator.manual_seed(seed))
    return out


def derive(seed: int, *numbers: int) -> int:
    """A 63-bit seed for another generator (`torch.manual_seed`, say) from a seed and, say, (step, rank)."""
    words = [part for v in (seed, *numbers) for part in (v & 0xFFFFFFFF, (v >> 32) & 0xFFFFFFFF)]
    # the length comes first: SeedSequence pads with zeros, and (1,) must differ from (1, 0)
    return int(np.random.SeedSequence([len(words), *words]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def epoch_order(seed: int, epoch: int, n: int) -> Int64[np.ndarray, "n"]:
    """A permutation of n images for epoch `epoch`: about 1.5 s and 160 MB for ten million.

    It sorts raw words, since NumPy may change the algorithm of `Generator.permutation` between versions.
    """
    words = np.random.Philox(key=derive(seed, epoch)).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def local_order(seed: int, epoch: int, blocks: Int64[np.ndarray, "n"], window: int) -> Int64[np.ndarray, "n"]:
    """`epoch_order` for images in blocks (`blocks`: each image's block), reading `window` blocks at a time.

    Blocks are in random order, then images in random order within windows of so many consecutive blocks.
    """
    order = epoch_order(seed, epoch, len(blocks))
    numbers, which = np.unique(blocks, return_inverse=True)
    rank = np.empty(len(numbers), np.int64)
    rank[epoch_order(derive(seed, _SHUFFLE), epoch, len(numbers))] = np.arange(len(numbers))
    return order[np.argsort((rank // window)[which[order]], kind="stable")]


def occurrence(values: Int[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """How often each value stands earlier among the values."""
    order = np.argsort(values, kind="stable")
    _, first, counts = np.unique(values[order], return_index=True, return_counts=True)
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - np.repeat(first, counts)
    return ranks
