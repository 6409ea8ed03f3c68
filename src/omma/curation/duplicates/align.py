"""Whether one picture shows a part of another: found by correlation, refined by Gauss-Newton, and measured.

Hashes and features say that two images are alike; this says that their pixels coincide after a shift, a
change of size, a small turn, a mirroring and a change of contrast, which different images hardly ever do. It
costs a millisecond or so a pair, so that it is for candidates. Registration as by Lucas and Kanade [1981] with
gain and bias [Evangelidis 2008], from the best window of a normalised cross-correlation.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

SIDE = 64  # pixels of the pictures, square, whatever the images' aspect
COARSE = 32  # pixels of those that are searched
WINDOWS = (32, 30, 28, 26, 24, 22, 20, 18, 16)  # sides of the searched windows: parts of 25 % and more
SMOOTHING = ((2.0, 5), (1.0, 6))  # sigma in pixels, and steps of Gauss-Newton
HIGH = 3.0  # sigma of the blur that is taken off before the final correlation
OVERLAP = 0.5  # of the part must lie within the whole
BATCH = 256  # pairs at a time


class Start(NamedTuple):
    """Where a part lies in a whole: orientation 0 to 7, and its box in shares of the whole."""

    orientation: Int[Tensor, "p"]
    centre: Float[Tensor, "p 2"]  # x, y in [-1, 1]
    scale: Float[Tensor, "p"]  # side of the part, of that of the whole


@torch.inference_mode()
def agreement(a: Float[np.ndarray, "p s s"], b: Float[np.ndarray, "p s s"]) -> Float[np.ndarray, "p"]:
    """Correlation of each pair of pictures where they coincide best, -1 to 1; either may be a part of the other."""
    found = [torch.zeros(0)]
    for x, y in zip(torch.from_numpy(a).float().split(BATCH), torch.from_numpy(b).float().split(BATCH)):
        found.append(torch.maximum(_part_of(x, y), _part_of(y, x)))
    return torch.cat(found).numpy()


def _part_of(whole: Tensor, part: Tensor) -> Tensor:
    """The correlation of `part` with what it covers of `whole`."""
    start = _search(whole, part)
    part = oriented(part).gather(1, start.orientation[:, None, None, None].expand(-1, 1, *part.shape[1:]))[
        :, 0
    ]
    warp = torch.zeros(len(part), 2, 3)
    warp[:, 0, 0] = warp[:, 1, 1] = start.scale
    warp[:, :, 2] = start.centre
    for sigma, steps in SMOOTHING:
        smooth_whole, smooth_part = blurred(whole, sigma), blurred(part, sigma)
        for _ in range(steps):
            warp = _step(smooth_whole, smooth_part, warp)
    whole, part = (each - blurred(each, HIGH) for each in (blurred(whole, 0.7), blurred(part, 0.7)))
    return _correlation(whole, part, warp)


def oriented(pictures: Float[Tensor, "p s s"]) -> Float[Tensor, "p 8 s s"]:
    """The eight orientations: as it is, mirrored, upside down, both; then each of them transposed."""
    flips = [pictures, pictures.flip(2), pictures.flip(1), pictures.flip(1, 2)]
    return torch.stack([*flips, *(each.transpose(1, 2) for each in flips)], dim=1)


def blurred(pictures: Float[Tensor, "p s s"], sigma: float) -> Float[Tensor, "p s s"]:
    """Gaussian blur; edges are repeated."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(pictures)
    padded = F.pad(pictures[:, None], [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[:, 0]


def _search(whole: Tensor, part: Tensor) -> Start:
    """The window of `whole` that correlates best with `part` in one of its orientations."""
    p = len(whole)
    small = F.interpolate(whole[:, None], size=COARSE, mode="area")
    best = torch.full((p,), -2.0)
    orientation, scale = torch.zeros(p, dtype=torch.long), torch.ones(p)
    centre = torch.zeros(p, 2)
    for side in WINDOWS:
        windows = _standard(F.unfold(small, side).transpose(1, 2))  # [p, places, side * side]
        reduced = F.interpolate(part[:, None], size=side, mode="bilinear", antialias=True)[:, 0]
        seen = _standard(oriented(reduced).flatten(2))  # [p, 8, side * side]
        value, place = (seen @ windows.transpose(1, 2)).flatten(1).max(dim=1)
        places = windows.shape[1]
        row = COARSE - side + 1
        turn, place = place // places, place % places
        corner = torch.stack([place % row, place // row], dim=1).float()
        better = value > best
        best = torch.where(better, value, best)
        orientation = torch.where(better, turn, orientation)
        scale = torch.where(better, side / COARSE, scale)
        middle = (2 * corner + side) / COARSE - 1
        centre = torch.where(better[:, None], middle, centre)
    return Start(orientation, centre, scale)


def _standard(rows: Tensor) -> Tensor:
    """Rows of mean 0 and length 1."""
    rows = rows - rows.mean(dim=-1, keepdim=True)
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def _points(side: int) -> Tensor:
    """Centres of pixels as x, y, 1 in [-1, 1]: [side * side, 3]."""
    line = (torch.arange(side) * 2 + 1) / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)


def _sampled(pictures: Tensor, places: Tensor) -> Tensor:
    """Channels [p, c, s, s] at places [p, n, 2]: [p, n, c]."""
    return F.grid_sample(pictures, places[:, None], padding_mode="border", align_corners=False)[
        :, :, 0
    ].transpose(1, 2)


def _inside(places: Tensor) -> Tensor:
    return (places.abs() <= 1).all(dim=-1).float()


def _step(whole: Tensor, part: Tensor, warp: Tensor) -> Tensor:
    """One step of Gauss-Newton of part(x) = gain * whole(warp(x)) + bias, in warp, gain and bias."""
    points = _points(part.shape[-1])
    places = points @ warp.transpose(1, 2)  # [p, n, 2]
    half = whole.shape[-1] / 2  # pixels to units of places
    across = F.pad(whole[:, None], [1, 1, 0, 0], mode="replicate")
    down = F.pad(whole[:, None], [0, 0, 1, 1], mode="replicate")
    slopes = [
        (across[..., 2:] - across[..., :-2]) * half / 2,
        (down[..., 2:, :] - down[..., :-2, :]) * half / 2,
    ]
    value, dx, dy = _sampled(torch.cat([whole[:, None], *slopes], dim=1), places).unbind(-1)
    weight = _inside(places)
    columns = torch.cat(
        [dx[..., None] * points, dy[..., None] * points, value[..., None], torch.ones_like(value)[..., None]],
        dim=-1,
    )
    weighted = columns * weight[..., None]
    normal = weighted.transpose(1, 2) @ columns
    ridge = 1e-4 * torch.diag_embed(normal.diagonal(dim1=1, dim2=2)) + 1e-3 * torch.eye(8)
    target = weighted.transpose(1, 2) @ part.flatten(1)[..., None]
    solution = torch.linalg.solve_ex(normal + ridge, target)[0][..., 0]
    gain = solution[:, 6:7]
    gain = torch.where(gain.abs() < 0.1, torch.full_like(gain, 0.1), gain)
    change = (solution[:, :6] / gain).nan_to_num().clamp(-0.15, 0.15).reshape(-1, 2, 3)
    return warp + change


def _correlation(whole: Tensor, part: Tensor, warp: Tensor) -> Tensor:
    """Correlation over the pixels of `part` that lie within `whole`; 0 where too few do, or the warp is wild."""
    places = _points(part.shape[-1]) @ warp.transpose(1, 2)
    value, weight = _sampled(whole[:, None], places)[..., 0], _inside(places)
    total = weight.sum(dim=1, keepdim=True).clamp_min(1)
    x, y = part.flatten(1), value
    x = (x - (x * weight).sum(1, keepdim=True) / total) * weight
    y = (y - (y * weight).sum(1, keepdim=True) / total) * weight
    correlation = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-6)
    area = warp[:, 0, 0] * warp[:, 1, 1] - warp[:, 0, 1] * warp[:, 1, 0]
    stretch = torch.linalg.svdvals(warp[:, :, :2])
    tame = (area > 0.1) & (area < 1.6) & (stretch[:, 0] < 1.7 * stretch[:, 1])
    return torch.where(tame & (total[:, 0] >= OVERLAP * len(places[0])), correlation, torch.zeros(()))
