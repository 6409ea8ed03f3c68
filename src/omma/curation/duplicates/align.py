"""Whether one picture shows a part of another: found by correlation, refined by Gauss-Newton, and measured.

Hashes and features say that two images are alike; this says that their pixels coincide after a shift, a
change of size, a small turn, a mirroring and a change of contrast, which those of different images hardly
ever do. It costs some milliseconds a pair, so it is for candidates. The best window of a normalised
cross-correlation is where registration starts [Lucas & Kanade 1981], with gain and bias among the unknowns.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

SIDE = 64  # pixels of the pictures, square, whatever the images' aspect
COARSE = 32  # pixels of those that are searched
WINDOWS = (32, 30, 28, 26, 24, 22, 20, 18, 16)  # sides of the searched windows: parts of 25 % and more
SMOOTHING = ((2.0, 5), (1.0, 5))  # sigma in pixels, and steps of Gauss-Newton
STRIDE = 2  # every second pixel either way suffices for eight unknowns
LOW, HIGH = 0.7, 3.0  # sigma of the blur before the final correlation, and of the one that is taken off
OVERLAP = 0.5  # of the part must lie within the whole
LARGEST, SMALLEST, STRETCH = 1.6, 0.1, 1.7  # area of the part in that of the whole, and change of aspect
BATCH = 64  # pairs at a time: the caches are small


class Start(NamedTuple):
    """Where a part lies in a whole."""

    correlation: Float[Tensor, "p"]
    orientation: Int[Tensor, "p"]  # 0 to 7, as `oriented` orders them
    centre: Float[Tensor, "p 2"]  # x, y in [-1, 1]
    scale: Float[Tensor, "p"]  # side of the part as a share of that of the whole


@torch.inference_mode()
def agreement(a: Float[np.ndarray, "p s s"], b: Float[np.ndarray, "p s s"]) -> Float[np.ndarray, "p"]:
    """Correlation of each two pictures where they coincide best, -1 to 1; either may be part of the other."""
    found = [torch.zeros(0)]
    for start in range(0, len(a), BATCH):
        x, y = (torch.from_numpy(each[start : start + BATCH]).float() for each in (a, b))
        one, other = _search(x, y), _search(y, x)
        back = (other.correlation > one.correlation)[:, None, None]
        begin = Start(*(torch.where(back.view(-1, *[1] * (q.ndim - 1)), q, p) for p, q in zip(one, other)))
        found.append(_refined(torch.where(back, y, x), torch.where(back, x, y), begin))
    return torch.cat(found).numpy()


def _refined(whole: Tensor, part: Tensor, start: Start) -> Tensor:
    """The correlation of `part` with what it covers of `whole`."""
    part = oriented(part)[torch.arange(len(part)), start.orientation]
    warp = torch.zeros(len(part), 2, 3)
    warp[:, 0, 0] = warp[:, 1, 1] = start.scale
    warp[:, :, 2] = start.centre
    points = _points(SIDE)
    few = points.view(SIDE, SIDE, 3)[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].reshape(-1, 3)
    for sigma, steps in SMOOTHING:
        sloped = _with_slopes(blurred(whole, sigma))
        target = blurred(part, sigma)[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].flatten(1)
        for _ in range(steps):
            warp = _step(sloped, target, few, warp)
    whole, part = (blurred(each, LOW) - blurred(each, HIGH) for each in (whole, part))
    return _correlation(whole, part, points, warp)


def oriented(pictures: Float[Tensor, "p s s"]) -> Float[Tensor, "p 8 s s"]:
    """The eight orientations: as it is, mirrored, upside down, both; then each of them transposed."""
    flips = [pictures, pictures.flip(2), pictures.flip(1), pictures.flip(1, 2)]
    return torch.stack([*flips, *(each.transpose(1, 2) for each in flips)], dim=1)


def blurred(pictures: Float[Tensor, "p s s"], sigma: float) -> Float[Tensor, "p s s"]:
    """Gaussian blur; at edges the kernel is cut and normalised."""
    kernel = _kernel(pictures.shape[-1], sigma)
    return kernel @ pictures @ kernel.T


@lru_cache
def _kernel(side: int, sigma: float) -> Tensor:
    with torch.inference_mode(False):
        line = torch.arange(side)
        kernel = torch.exp(-0.5 * ((line[:, None] - line) / sigma) ** 2)
        kernel = torch.where(kernel < 1e-6, torch.zeros(()), kernel)  # denormal numbers are slow
        return kernel / kernel.sum(dim=1, keepdim=True)


# ---------------------------------------------------------------- search
def _search(whole: Tensor, part: Tensor) -> Start:
    """The window of `whole` that correlates best with `part` in one of its orientations."""
    p = len(whole)
    small = F.adaptive_avg_pool2d(whole, COARSE)
    moments = torch.stack([small, small.square()], dim=1)
    best = Start(torch.full((p,), -2.0), torch.zeros(p, dtype=torch.long), torch.zeros(p, 2), torch.ones(p))
    for side in WINDOWS:
        row = COARSE - side + 1
        windows = small.unfold(1, side, 1).unfold(2, side, 1).reshape(p, row * row, side * side)
        box = torch.ones(row, COARSE).triu().tril(side - 1) / side
        mean, square = (box @ moments @ box.T).flatten(2).unbind(1)
        spread = (side * (square - mean.square()).clamp_min(1e-6).sqrt())[:, None]
        reduced = F.interpolate(part[:, None], size=side, mode="bilinear", antialias=True)[:, 0]
        seen = _standard(oriented(reduced).flatten(2))  # [p, 8, side * side]
        value, at = (seen @ windows.transpose(1, 2) / spread).flatten(1).max(dim=1)
        place = at % row**2
        corner = torch.stack([place % row, place // row], dim=1)
        centre = (2 * corner + side) / COARSE - 1
        found = Start(value, at // row**2, centre, torch.full((p,), side / COARSE))
        better = value > best.correlation
        best = Start(*(torch.where(better.view(-1, *[1] * (q.ndim - 1)), q, b) for q, b in zip(found, best)))
    return best


def _standard(rows: Tensor) -> Tensor:
    """Rows of mean 0 and length 1."""
    rows = rows - rows.mean(dim=-1, keepdim=True)
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-6)


# ---------------------------------------------------------------- registration
def _points(side: int) -> Float[Tensor, "n 3"]:
    """Centres of pixels as x, y, 1 in [-1, 1]."""
    line = (torch.arange(side) * 2 + 1) / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)


def _with_slopes(pictures: Float[Tensor, "p s s"]) -> Float[Tensor, "p 3 s s"]:
    """Pictures and their derivatives by x and y, where the picture spans [-1, 1]."""
    half = pictures.shape[-1] / 2
    across = F.pad(pictures[:, None], [1, 1, 0, 0], mode="replicate")[:, 0]
    down = F.pad(pictures[:, None], [0, 0, 1, 1], mode="replicate")[:, 0]
    dx, dy = across[:, :, 2:] - across[:, :, :-2], down[:, 2:] - down[:, :-2]
    return torch.stack([pictures, dx * half / 2, dy * half / 2], dim=1)


def _sampled(pictures: Float[Tensor, "p c s s"], places: Float[Tensor, "p n 2"]) -> Float[Tensor, "p c n"]:
    return F.grid_sample(pictures, places[:, None], padding_mode="border", align_corners=False)[:, :, 0]


def _inside(places: Float[Tensor, "p n 2"]) -> Float[Tensor, "p n"]:
    return (places.abs().amax(dim=-1) <= 1).float()


def _step(sloped: Tensor, target: Tensor, points: Tensor, warp: Tensor) -> Float[Tensor, "p 2 3"]:
    """One step of Gauss-Newton of target(x) = gain * whole(warp(x)) + bias, in warp, gain and bias."""
    places = points @ warp.transpose(1, 2)
    weight = _inside(places)
    value, dx, dy = (_sampled(sloped, places) * weight[:, None]).unbind(1)
    line = points.T
    columns = torch.cat([dx[:, None] * line, dy[:, None] * line, value[:, None], weight[:, None]], dim=1)
    normal = columns @ columns.transpose(1, 2)
    ridge = 1e-4 * torch.diag_embed(normal.diagonal(dim1=1, dim2=2)) + 1e-3 * torch.eye(8)
    solution = torch.linalg.solve_ex(normal + ridge, columns @ target[..., None])[0][..., 0]
    gain = solution[:, 6:7]
    gain = torch.where(gain.abs() < 0.1, torch.full_like(gain, 0.1), gain)  # steps stay finite
    return warp + (solution[:, :6] / gain).nan_to_num().clamp(-0.15, 0.15).reshape(-1, 2, 3)


def _correlation(whole: Tensor, part: Tensor, points: Tensor, warp: Tensor) -> Float[Tensor, "p"]:
    """Correlation over the pixels of `part` that lie within `whole`; 0 where few do, or the warp is wild."""
    places = points @ warp.transpose(1, 2)
    weight = _inside(places)
    total = weight.sum(dim=1, keepdim=True).clamp_min(1)
    x, y = part.flatten(1), _sampled(whole[:, None], places)[:, 0]
    x = (x - (x * weight).sum(1, keepdim=True) / total) * weight
    y = (y - (y * weight).sum(1, keepdim=True) / total) * weight
    correlation = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-6)
    area = warp[:, 0, 0] * warp[:, 1, 1] - warp[:, 0, 1] * warp[:, 1, 0]
    # of singular values s >= t of the warp: s t = area, s^2 + t^2 = its squares' sum
    squares = warp[:, :, :2].square().sum(dim=(1, 2))
    tame = (area > SMALLEST) & (area < LARGEST) & (squares < (STRETCH + 1 / STRETCH) * area)
    return torch.where(tame & (total[:, 0] >= OVERLAP * len(points)), correlation, torch.zeros(()))
