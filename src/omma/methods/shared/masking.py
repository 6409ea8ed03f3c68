"""Random masks of an image's tokens, drawn from the image's Key."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from omma.core import random
from omma.core.protocols import Backbone, Key
from omma.core.random import Stream

_MAX_FAILURES = 10  # blocks in a row that do not fit before a mask is final [Bao 2021, released code]
_MAX_BLOCKS = 64  # blocks tried per image


def random_keep(key: Key, stream: int, tokens: int, share: float) -> Int[Tensor, "b m"]:
    """Sorted indices of the tokens that stay visible when a random `share` of them is masked.

    m = int(tokens * (1 - share)), at least 1 [He 2021, section 3].
    """
    visible = max(1, int(tokens * (1 - share)))
    return torch.from_numpy(np.sort(random.permutations(key, stream, tokens)[:, :visible], axis=1))


def random_units(
    key: Key, stream: int, grid: tuple[int, int], unit: int, share: float
) -> Bool[Tensor, "b n"]:
    """Masks of whole units of `unit` x `unit` tokens, ceil(share * units) of them [Xie 2021, section 3.2].

    Units at the right and bottom are cut where the grid is no multiple of `unit`. At least one unit stays
    visible. Raises ValueError if the grid is a single unit.
    """
    rows, columns = (-(-side // unit) for side in grid)
    units = rows * columns
    if units < 2:
        raise ValueError(f"units of {unit} x {unit} patches hide all of {grid[0]} x {grid[1]}")
    count = min(math.ceil(units * share), units - 1)
    mask = np.zeros((len(key.index), units), bool)
    np.put_along_axis(mask, random.permutations(key, stream, units)[:, :count], True, axis=1)
    mask = mask.reshape(-1, rows, columns).repeat(unit, 1).repeat(unit, 2)[:, : grid[0], : grid[1]]
    return torch.from_numpy(mask.reshape(len(mask), -1))


def blockwise(
    key: Key,
    stream: int,
    grid: tuple[int, int],
    counts: Float[np.ndarray, "b"] | Int[np.ndarray, "b"],
    least: float = 16,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Bool[Tensor, "b n"]:
    """Masks made of rectangles, up to `counts` patches of each image [Bao 2021, algorithm 1].

    A rectangle's area is uniform between `least` and the number of patches still to mask, its aspect ratio
    log-uniform; both sides are shorter than the grid's. One that would mask nothing new or too many patches
    is drawn again; after 10 such in a row the mask is final, as in the code behind the paper's figures. So an
    image may have fewer masked patches than `counts`, never more.
    """
    height, width = grid
    counts = np.asarray(counts, np.float64)
    b = len(counts)
    mask = np.zeros((b, height, width), bool)
    remaining = counts.copy()
    failures = np.zeros(b, np.int64)
    u = random.uniform(key, stream, 4 * _MAX_BLOCKS).reshape(b, _MAX_BLOCKS, 4).astype(np.float64)
    low, high = (math.log(ratio) for ratio in aspect)
    rows, columns = np.arange(height)[None, :], np.arange(width)[None, :]
    for i in range(_MAX_BLOCKS):
        unfinished = (remaining > 0) & (failures < _MAX_FAILURES)
        if not unfinished.any():
            break
        area = least + u[:, i, 0] * (remaining - least)
        ratio = np.exp(low + u[:, i, 1] * (high - low))
        h = np.rint(np.sqrt(np.maximum(area, 0) * ratio)).astype(np.int64)
        w = np.rint(np.sqrt(np.maximum(area, 0) / ratio)).astype(np.int64)
        top = np.floor(u[:, i, 2] * (height - h + 1))[:, None]
        left = np.floor(u[:, i, 3] * (width - w + 1))[:, None]
        in_rows = (rows >= top) & (rows < top + h[:, None])
        in_columns = (columns >= left) & (columns < left + w[:, None])
        new = in_rows[:, :, None] & in_columns[:, None, :] & ~mask
        n = new.sum((1, 2))
        accepted = unfinished & (h < height) & (w < width) & (n > 0) & (n <= remaining)
        mask |= new & accepted[:, None, None]
        remaining = np.where(accepted, remaining - n, remaining)
        failures = np.where(accepted, 0, failures + 1)
    return torch.from_numpy(mask.reshape(b, -1))


def blocks(key: Key, grid: tuple[int, int], share: float, least: float) -> Bool[Tensor, "b n"]:
    """Block-wise masks of up to `share` of each image's patches; `least`: smallest share in a block."""
    n = grid[0] * grid[1]
    counts = np.full(len(key.index), round(share * n))
    return blockwise(key, Stream.MASK, grid, counts, max(1, round(least * n)))


def some_masked(
    key: Key, stream: int, probability: float, share: tuple[float, float]
) -> Float32[np.ndarray, "b"]:
    """The share of each image's patches to mask: uniform in `share` with `probability`, otherwise 0.

    [Zhou 2021, section 3.3]
    """
    u = random.uniform(key, stream, 2)
    return np.where(u[:, 0] < probability, share[0] + (share[1] - share[0]) * u[:, 1], 0).astype(np.float32)


def view_masks(
    key: Key, views: int, grid: tuple[int, int], probability: float, share: tuple[float, float], least: float
) -> Bool[Tensor, "vb n"]:
    """Independent block-wise masks of `views` views of each image, view after view (see `some_masked`)."""
    masks = []
    for view in range(views):
        counts = some_masked(key, Stream.MASK + 2 * view, probability, share) * (grid[0] * grid[1])
        masks.append(blockwise(key, Stream.MASK + 2 * view + 1, grid, counts, least))
    return torch.cat(masks)


def masked_indices(mask: Bool[Tensor, "b n"], multiple: int = 64) -> Int[Tensor, "m"]:
    """Indices into the flattened mask where it is true, padded by zeros to a multiple of `multiple`.

    Padding limits the number of different shapes, for each of which kernels are prepared again.
    """
    index = mask.flatten().nonzero()[:, 0]
    return F.pad(index, (0, -len(index) % multiple))


def enlarged(mask: Bool[Tensor, "b n"], grid: tuple[int, int], times: int) -> Bool[Tensor, "b m"]:
    """A mask of the grid's patches, for tokens that are `times` smaller along each side."""
    if times == 1:
        return mask
    return mask.unflatten(1, grid).repeat_interleave(times, 1).repeat_interleave(times, 2).flatten(1)


def hide(
    encoder: Backbone,
    images: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b n"],
    token: Float[Tensor, "1 1 d"],
) -> tuple[Float[Tensor, "b m d"], tuple[int, int]]:
    """The encoder's tokens of images, with the mask token in place of masked patches, and its grid.

    mask: for the encoder's features; all tokens that the encoder merges into one (Swin) are hidden with it.
    """
    tokens, grid = encoder.tokenize(images), encoder.grid(*images.shape[-2:])
    token_mask = enlarged(mask, grid, encoder.patch // encoder.token_patch)
    return torch.where(token_mask[:, :, None], token.to(tokens.dtype), tokens), grid
