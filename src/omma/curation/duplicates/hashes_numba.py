"""Pairs of near hashes by loops that Numba compiles; `hashes` has the same by arrays, which tests compare."""

import numpy as np

from omma.core.compiled import compiled

STRIP = 512  # hashes compared with one at a time


@compiled(inline="always")
def _bits(x: np.uint64) -> np.uint64:
    """Bits set [Warren, Hacker's Delight, 5-1]; compiled to the processor's instruction."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@compiled()
def near(a: np.ndarray, b: np.ndarray, limit: int, start: int, found: np.ndarray) -> int:
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
