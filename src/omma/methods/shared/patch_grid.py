"""Nine patches of an image in a grid with gaps, for context prediction [Doersch 2015, section 3.1]."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omma.core.protocols import Key
from omma.core.random import Stream, fill, uniform

PLACES = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # rows down, columns right
COLOURS = ("drop", "project", "keep")
GREEN_MAGENTA = (-1.0, 2.0, -1.0)  # the axis along which lenses shift colours


def side(patch: int, gap: int, jitter: int) -> int:
    """Pixels of the whole grid, along a side."""
    return 3 * patch + 2 * gap + 2 * jitter


def neighbours(centre: bool) -> Int[np.ndarray, "3 p"]:
    """First patch, second patch and its place seen from the first, of all neighbours in both directions.

    centre: those of the patch in the centre alone. Patches are numbered row by row.
    """
    found = []
    for first in (4,) if centre else range(9):
        for place, (down, right) in enumerate(PLACES):
            row, column = first // 3 + down, first % 3 + right
            if 0 <= row < 3 and 0 <= column < 3:
                found.append((first, 3 * row + column, place))
    return np.array(found).T


def cut(
    images: Float[Tensor, "b c s s"], key: Key, patch: int, gap: int, jitter: int
) -> Float[Tensor, "b 9 c p p"]:
    """The patches of the grid, each moved by its own jitter in [-j, j] down and right."""
    b, p = len(images), patch
    drawn = uniform(key, Stream.METHOD, 18).reshape(b, 2, 9)
    moves = np.floor(drawn * (2 * jitter + 1)).astype(np.int64)
    grid = np.stack([np.arange(9) // 3, np.arange(9) % 3]) * (p + gap)
    corners = torch.from_numpy(grid + moves).to(images.device)  # [b, 2, 9]
    rows, columns = (corners[:, axis, :, None] + torch.arange(p, device=images.device) for axis in (0, 1))
    each = torch.arange(b, device=images.device)[:, None, None, None]
    return images.permute(0, 2, 3, 1)[each, rows[..., None], columns[:, :, None]].permute(0, 1, 4, 2, 3)


def without_colour(patches: Float[Tensor, "b 9 c p p"], key: Key, colour: str) -> Float[Tensor, "b 9 c p p"]:
    """drop: one channel less its mean, and noise of a hundredth of its deviation in the others; the patch is
    then scaled to a root mean square of 1. project: the green-magenta axis is taken out. [section 3.1]
    """
    if colour == "keep":
        return patches
    c, p = patches.shape[2:4]
    if colour == "project":
        axis = F.normalize(patches.new_tensor(GREEN_MAGENTA), dim=0)
        return patches - axis[:, None, None] * (patches * axis[:, None, None]).sum(2, keepdim=True)
    chosen = torch.from_numpy(np.floor(uniform(key, Stream.METHOD + 1, 9) * c).astype(np.int64))
    kept = F.one_hot(chosen.to(patches.device), c)[..., None, None].to(patches.dtype)
    own = (patches * kept).sum(2, keepdim=True)
    own = own - own.mean((3, 4), keepdim=True)
    deviation = own.square().mean((3, 4), keepdim=True).sqrt()
    noise = fill(key, Stream.METHOD + 2, (9, c, p, p), patches.device, torch.Tensor.normal_).to(patches.dtype)
    noise = noise * deviation / 100
    patches = own * kept + noise * (1 - kept)
    return patches / (patches.square().mean((2, 3, 4), keepdim=True).sqrt() + 1e-3)
