"""Occlusion: how much the score falls where a grey square hides the image [Zeiler 2013, 1311.2901]."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from omma.inspection.kinds import Explanation, Heat, Kind, Rows, Subject

SHARE = 8  # the window's side is the image's, divided by this; the stride is half of it


class Occluded(NamedTuple):
    """What hiding parts of the images does."""

    drops: Float[np.ndarray, "n rows columns"]  # mean fall of the score over the windows that hide a cell
    whole: Float[np.ndarray, "n"]  # the score of the whole image
    window: int  # side of the square, in pixels


def corners(side: int, window: int, stride: int) -> Int[np.ndarray, "k"]:
    """Where windows begin along a side, so that they reach both ends."""
    starts = np.arange(0, side - window + 1, stride)
    return starts if starts[-1] == side - window else np.append(starts, side - window)


@torch.no_grad()
def occlusion(subject: Subject, share: int = SHARE) -> Occluded:
    """Hide a square of 1/share of the shorter side, at strides of half of it; by the data's mean, which is 0.

    A cell of the result is a square of one stride (the last in a row or column may be smaller in the image).
    Raises ValueError for images of less than 2 share pixels.
    """
    height, width = subject.size
    window = min(height, width) // share
    if window < 2:
        raise ValueError(f"images of {height} x {width} px are too small to hide 1/{share} of their side")
    stride = window // 2
    tops, lefts = corners(height, window, stride), corners(width, window, stride)
    places = [(int(top), int(left)) for top in tops for left in lefts]
    whole = scores(subject, subject.pixels, torch.arange(len(subject.pixels)))
    falls = np.zeros((len(subject.pixels), len(places)))
    for i, image in enumerate(subject.pixels):
        for start in range(0, len(places), subject.batch):
            part = places[start : start + subject.batch]
            hidden = image.repeat(len(part), 1, 1, 1)
            for copy, (top, left) in zip(hidden, part):
                copy[:, top : top + window, left : left + window] = 0
            found = scores(subject, hidden, torch.full((len(part),), i))
            falls[i, start : start + len(part)] = whole[i] - found
        subject.progress("occlusion", i + 1, len(subject.pixels))
    return Occluded(_spread(falls, tops, lefts, window, stride, (height, width)), whole, window)


def scores(
    subject: Subject, images: Float[Tensor, "b c h w"], which: Int[Tensor, "b"]
) -> Float[np.ndarray, "b"]:
    """The target's scores of changed copies of images; which: of which image each is one. In fp64."""
    rows = []
    for part, numbers in zip(images.split(subject.batch), which.to(images.device).split(subject.batch)):
        rows.append(subject.target(subject.encoder(part), numbers).double().cpu())
    return torch.cat(rows).numpy()


def _spread(
    falls: Float[np.ndarray, "n k"],
    tops: Int[np.ndarray, "r"],
    lefts: Int[np.ndarray, "c"],
    window: int,
    stride: int,
    size: tuple[int, int],
) -> Float[np.ndarray, "n rows columns"]:
    """The mean over the windows that cover each cell, which is a square of one stride."""
    height, width = size
    total, count = np.zeros((len(falls), height, width)), np.zeros((height, width))
    for place, (top, left) in enumerate((t, c) for t in tops for c in lefts):
        total[:, top : top + window, left : left + window] += falls[:, place, None, None]
        count[top : top + window, left : left + window] += 1
    centres = [np.minimum(np.arange(0, side, stride) + stride // 2, side - 1) for side in size]
    return (total / np.maximum(count, 1))[:, centres[0]][:, :, centres[1]]


def one_map(subject: Subject) -> Float[np.ndarray, "n rows columns"]:
    """What raises the score: the fall where it is positive."""
    return occlusion(subject).drops.clip(0)


def explain(subject: Subject) -> Explanation:
    """The fall of the score, and where hiding raises it."""
    found = occlusion(subject)
    unit, rows = subject.target.unit, []
    for i, drops in enumerate(found.drops):
        whole = f"{unit} {found.whole[i]:.3g}"
        rows.append((Heat(drops.clip(0), i, whole), Heat((-drops).clip(0), i)))
    caption = (
        f"A square of {found.window} x {found.window} pixels hides a part of the image (it becomes the "
        f"data's mean colour); the colour says how much the {unit} falls there, mean over the squares that "
        "cover a spot. Right: where hiding raises it, so that what is there speaks against. Each scale runs "
        "from 0 to the map's largest value: if that is small beside the score, no single part decides."
    )
    return Explanation(
        "Occlusion", caption, (Rows(("falls", "rises"), tuple(rows)),), {"occlusion": found.drops}
    )


KIND = Kind(name="occlusion", explain=explain, one_map=one_map, default=True)
