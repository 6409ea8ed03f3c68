"""Which tokens of an image are hidden, drawn from the image's own random numbers."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from omma.core import random
from omma.core.protocols import Backbone, Key
from omma.core.random import Stream

_IN_A_ROW = 10  # blocks that may find no place before an image is left as it is [Bao 2021, released code]
_TRIES = 64  # blocks that are tried at all


def random_keep(key: Key, stream: int, tokens: int, share: float) -> Int[Tensor, "b m"]:
    """Numbers of the tokens that stay visible when `share` of them is masked at random, in rising order.

    m = int(tokens * (1 - share)), at least 1 [He 2021, section 3].
    """
    kept = max(1, int(tokens * (1 - share)))
    order = random.permutations(key, stream, tokens)[:, :kept]
    return torch.from_numpy(np.sort(order, axis=1))


def random_units(
    key: Key, stream: int, grid: tuple[int, int], unit: int, share: float
) -> Bool[Tensor, "b n"]:
    """Masks of whole units of `unit` x `unit` tokens, ceil(share * units) of them [Xie 2021, section 3.2].

    Units at the right and bottom are cut off where the grid is no multiple. At least one unit is left
    visible. Raises ValueError where the grid is a single unit.
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

    A rectangle's area is uniform between `least` and what is still to be masked, its aspect ratio
    log-uniform; one that would mask nothing new or too much is drawn again, and an image ends when 10 in a
    row found no place, as in the code behind the paper's figures: there may be fewer masked patches than
    asked for, never more. A rectangle is lower and narrower than the grid.
    """
    height, width = grid
    counts = np.asarray(counts, np.float64)
    b = len(counts)
    mask = np.zeros((b, height, width), bool)
    left = counts.copy()
    failed = np.zeros(b, np.int64)
    u = random.uniform(key, stream, 4 * _TRIES).reshape(b, _TRIES, 4).astype(np.float64)
    low, high = (math.log(ratio) for ratio in aspect)
    rows, columns = np.arange(height)[None, :], np.arange(width)[None, :]
    for i in range(_TRIES):
        open_ = (left > 0) & (failed < _IN_A_ROW)
        if not open_.any():
            break
        area = least + u[:, i, 0] * (left - least)
        ratio = np.exp(low + u[:, i, 1] * (high - low))
        h = np.rint(np.sqrt(np.maximum(area, 0) * ratio)).astype(np.int64)
        w = np.rint(np.sqrt(np.maximum(area, 0) / ratio)).astype(np.int64)
        top = np.floor(u[:, i, 2] * (height - h + 1))[:, None]
        beside = np.floor(u[:, i, 3] * (width - w + 1))[:, None]
        inside = ((rows >= top) & (rows < top + h[:, None]))[:, :, None] & (
            (columns >= beside) & (columns < beside + w[:, None])
        )[:, None, :]
        new = inside & ~mask
        n = new.sum((1, 2))
        good = open_ & (h < height) & (w < width) & (n > 0) & (n <= left)
        mask |= new & good[:, None, None]
        left = np.where(good, left - n, left)
        failed = np.where(good, 0, failed + 1)
    return torch.from_numpy(mask.reshape(b, -1))


def blocks(key: Key, grid: tuple[int, int], share: float, least: float) -> Bool[Tensor, "b n"]:
    """Block-wise masks of up to `share` of each image's patches, no block under `least` of them."""
    n = grid[0] * grid[1]
    counts = np.full(len(key.index), round(share * n))
    return blockwise(key, Stream.MASK, grid, counts, max(1, round(least * n)))


def some_masked(
    key: Key, stream: int, probability: float, share: tuple[float, float]
) -> Float32[np.ndarray, "b"]:
    """The share of each image's patches that is to be masked: 0, or with `probability` uniform in `share`.

    [Zhou 2021, section 3.3]; each image draws for itself.
    """
    u = random.uniform(key, stream, 2)
    return np.where(u[:, 0] < probability, share[0] + (share[1] - share[0]) * u[:, 1], 0).astype(np.float32)


def view_masks(
    key: Key,
    views: int,
    grid: tuple[int, int],
    probability: float,
    share: tuple[float, float],
    least: float,
) -> Bool[Tensor, "vb n"]:
    """Block-wise masks of `views` views of each image, one view after another; each draws for itself.

    A view is masked with `probability`, and then `share` of its patches, uniform in that range.
    """
    masks = []
    for view in range(views):
        wanted = some_masked(key, Stream.MASK + 2 * view, probability, share) * (grid[0] * grid[1])
        masks.append(blockwise(key, Stream.MASK + 2 * view + 1, grid, wanted, least))
    return torch.cat(masks)


def places(mask: Bool[Tensor, "b n"], multiple: int = 64) -> Int[Tensor, "m"]:
    """Where a mask is true, counted through all images, and then zeros, up to a multiple.

    Heads that see these places alone get few different shapes: kernels are made for each anew.
    """
    at = mask.flatten().nonzero()[:, 0]
    return F.pad(at, (0, -len(at) % multiple))


def enlarged(mask: Bool[Tensor, "b n"], grid: tuple[int, int], times: int) -> Bool[Tensor, "b m"]:
    """A mask of the grid's patches as one of tokens that are `times` smaller along each side."""
    if times == 1:
        return mask
    square = mask.unflatten(1, grid)
    return square.repeat_interleave(times, 1).repeat_interleave(times, 2).flatten(1)


def hide(
    encoder: Backbone,
    images: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b n"],
    token: Float[Tensor, "1 1 d"],
) -> tuple[Float[Tensor, "b m d"], tuple[int, int]]:
    """An encoder's tokens of images with the masked patches' replaced by the mask token, and its grid.

    mask: of the encoder's features; tokens that are merged within it (Swin's) are hidden together.
    """
    tokens, grid = encoder.tokenize(images), encoder.grid(*images.shape[-2:])
    small = enlarged(mask, grid, encoder.patch // encoder.token_patch)
    return torch.where(small[:, :, None], token.to(tokens.dtype), tokens), grid
