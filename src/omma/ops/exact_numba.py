"""Loops of `ops.exact`: which approximate scores may matter, and their exact values. CPU only.

Scores are fp32, or bf16 seen as int16. Their keys, int16, are ordered as the numbers are.
"""

import numpy as np

from omma.core.compiled import compiled

TOGETHER = 64  # scores looked at at a time
LOWEST = np.int16(-0x8000)

_loop = compiled()


@compiled(fastmath={"reassoc", "contract"})
def _dot(a, b):
    """In fp64, in one order for all rows: equal rows have equal products."""
    total = 0.0
    for j in range(len(a)):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@_loop
def _key(bits):
    return bits if bits >= 0 else np.int16(bits ^ 0x7FFF)


@_loop
def _rounded(value, scratch):
    """The key of a number rounded to bf16."""
    scratch[0] = value
    bits = scratch.view(np.uint32)[0]
    return _key(np.int16(np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)))


@_loop
def _value(key, scratch):
    scratch.view(np.uint32)[0] = np.uint32(np.uint16(_key(key))) << np.uint32(16)
    return np.float64(scratch[0])


@_loop
def _insert(scores, rows, score, row):
    """Keep the best, in order; a later row stands behind an equal one."""
    at = len(scores) - 1
    while at > 0 and scores[at - 1] < score:
        scores[at] = scores[at - 1]
        rows[at] = rows[at - 1]
        at -= 1
    scores[at] = score
    rows[at] = row


@_loop
def _largest(keys, k):
    """The k-th largest key, by counting: the upper byte, then the lower."""
    counts = np.zeros(256, np.int64)
    for key in keys:
        counts[(key >> 8) + 128] += 1
    upper, above = 255, 0
    while above + counts[upper] < k:
        above += counts[upper]
        upper -= 1
    counts[:] = 0
    for key in keys:
        if (key >> 8) + 128 == upper:
            counts[key & 255] += 1
    lower = 255
    while above + counts[lower] < k:
        above += counts[lower]
        lower -= 1
    return np.int16((upper - 128) * 256 + lower)


@_loop
def _reaching(scores, least, lowest, found):
    """Where scores reach `least`, in `found`; how many. lowest: of the scores' type."""
    count, whole = 0, len(scores) - len(scores) % TOGETHER
    for first in range(0, whole, TOGETHER):
        top = lowest
        for j in range(first, first + TOGETHER):
            top = max(top, scores[j])
        if top >= least:
            for j in range(first, first + TOGETHER):
                if scores[j] >= least:
                    found[count] = j
                    count += 1
    for j in range(whole, len(scores)):
        if scores[j] >= least:
            found[count] = j
            count += 1
    return count


@_loop
def _exactly(query, block, numbers, own, found, keys, count, error, scratch, scores, rows):
    """Compare the rows `found` by their products in fp64, leaving out `own`; keys: of their scores."""
    k, least = len(scores), LOWEST
    if scores[k - 1] == -np.inf and count > 2 * k:  # the k-th best score bounds the k-th best product
        value = _value(_largest(keys[:count], k), scratch)
        least = _rounded(value - abs(value) / 64 - 2 * error, scratch)
    for c in range(count):
        j = found[c]
        if keys[c] >= least and numbers[j] != own:
            score = _dot(query, block[j])
            if score > scores[k - 1]:
                _insert(scores, rows, score, numbers[j])


@_loop
def _merge_bf16(approximate, block, numbers, queries, error, offset, own, scores, rows):
    found, keys = np.empty(len(block), np.int32), np.empty(len(block), np.int16)
    scratch = np.empty(1, np.float32)
    for i in range(len(queries)):
        worst = scores[i, -1]
        least = LOWEST if worst == -np.inf else _rounded(worst - offset[i] - error[i], scratch)
        line = approximate[i]
        if least > 0:  # bits of positive numbers are in order, and above those of negative ones
            count = _reaching(line, least, LOWEST, found)
        else:
            count = 0
            for j in range(len(line)):
                if _key(line[j]) >= least:
                    found[count] = j
                    count += 1
        for c in range(count):
            keys[c] = _key(line[found[c]])
        _exactly(
            queries[i], block, numbers, own[i], found, keys, count, error[i], scratch, scores[i], rows[i]
        )


@_loop
def _merge_fp32(approximate, block, numbers, queries, error, offset, own, scores, rows):
    found, keys = np.empty(len(block), np.int32), np.empty(len(block), np.int16)
    scratch, lowest = np.empty(1, np.float32), np.float32(-np.inf)
    for i in range(len(queries)):
        least = np.float32(scores[i, -1] - offset[i] - error[i])
        count = _reaching(approximate[i], least, lowest, found)
        for c in range(count):
            keys[c] = _rounded(approximate[i, found[c]], scratch)
        _exactly(
            queries[i], block, numbers, own[i], found, keys, count, error[i], scratch, scores[i], rows[i]
        )


def merge(approximate, block, numbers, queries, error, offset, own, scores, rows):
    """Bring the best rows of each query up to date with those of a block, by their products in fp64.

    approximate [m, b]: scores of all, within `error` [m] of q.b - `offset`, in fp32, or rounded from it to
    bf16 and seen as int16. numbers [b]: of the block's rows, above all seen before. own [m]: a number to
    leave out. scores [m, k] and rows [m, k]: the best so far, best first, from -inf and -1.
    """
    kernel = _merge_bf16 if approximate.dtype == np.int16 else _merge_fp32
    kernel(approximate, block, numbers, queries, error, offset, own, scores, rows)
