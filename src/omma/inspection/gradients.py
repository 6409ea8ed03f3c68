"""Integrated gradients: summed on the way from a grey image [Sundararajan 2017, arXiv 1703.01365]."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.inspection.kinds import Explanation, Heat, Kind, Rows, Subject

STEPS = 64  # of the path; points of Gauss and Legendre, which integrate a smooth path with few
TOLERANCE = 0.05  # of the sum, relative to the score's difference


class Integrated(NamedTuple):
    """Attributions, and how well they sum to what they explain."""

    values: Float[np.ndarray, "n c h w"]
    sums: Float[np.ndarray, "n"]
    difference: Float[np.ndarray, "n"]  # the score of the image minus that of the grey one

    @property
    def error(self) -> Float[np.ndarray, "n"]:
        """|sum - difference| [Sundararajan 2017, proposition 1]: how far from complete the attributions are.

        Relative to the difference, or to a tenth of all pixels' attributions together if that is more.
        """
        total = np.abs(self.values.sum(1, dtype=np.float64)).sum((1, 2))
        scale = np.maximum(np.abs(self.difference), 0.1 * total)
        return np.abs(self.sums - self.difference) / np.maximum(scale, 1e-12)


def integrated(subject: Subject, steps: int = STEPS) -> Integrated:
    """(x - x0) times the mean gradient on the straight path from x0 to x [Sundararajan 2017, eq. 1].

    x0 is the data's mean colour, 0 after normalising.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    nodes, weights = (nodes + 1) / 2, weights / 2
    values, sums, differences = [], [], []
    for i, image in enumerate(subject.pixels):
        mean = torch.zeros_like(image, dtype=torch.float64)
        for start in range(0, steps, subject.batch):
            rows = slice(start, start + subject.batch)
            share = torch.tensor(nodes[rows], device=image.device)[:, None, None, None]
            gradient = gradients(subject, (share * image).to(image.dtype), i).double()
            mean += (gradient * torch.tensor(weights[rows], device=image.device)[:, None, None, None]).sum(0)
        own = (mean * image.double()).cpu()
        ends = _scores(subject, torch.stack([image, torch.zeros_like(image)]), i)
        values.append(own.float().numpy())
        sums.append(float(own.sum()))
        differences.append(float(ends[0] - ends[1]))
        subject.progress("integrated gradients", i + 1, len(subject.pixels))
    return Integrated(np.stack(values), np.array(sums), np.array(differences))


def gradients(subject: Subject, images: Float[Tensor, "b c h w"], which: int) -> Float[Tensor, "b c h w"]:
    """The gradient of each image's score; all are versions of image `which`."""
    with torch.enable_grad():
        images = images.detach().clone().requires_grad_()
        numbers = torch.full((len(images),), which, device=images.device)
        total = subject.target(subject.encoder(images), numbers).sum()
        return torch.autograd.grad(total, images)[0]


@torch.no_grad()
def _scores(subject: Subject, images: Tensor, which: int) -> Tensor:
    numbers = torch.full((len(images),), which, device=images.device)
    return subject.target(subject.encoder(images), numbers).double()


def summed(values: Float[np.ndarray, "n c h w"], grid: tuple[int, int]) -> Float[np.ndarray, "n gh gw"]:
    """Attributions of pixels and channels summed over the cells of a grid: what they add to the score."""
    pixels = torch.from_numpy(values).double().sum(1, keepdim=True)
    height, width = pixels.shape[-2:]
    area = height * width / (grid[0] * grid[1])
    return (torch.nn.functional.adaptive_avg_pool2d(pixels, grid) * area)[:, 0].numpy()


def cells(subject: Subject) -> tuple[int, int]:
    """About 28 cells along the shorter side: single pixels' attributions are noise to the eye."""
    height, width = subject.size
    cell = max(1, round(min(height, width) / 28))
    return -(-height // cell), -(-width // cell)


def one_map(subject: Subject) -> Float[np.ndarray, "n gh gw"]:
    """What raises the score: the cells' sums where they are positive."""
    return summed(integrated(subject).values, cells(subject)).clip(0)


def explain(subject: Subject) -> Explanation:
    """What each part of the image adds to the score, and what it takes away."""
    found = integrated(subject)
    maps, rows, notes = summed(found.values, cells(subject)), [], []
    for i, each in enumerate(maps):
        text = f"sum {found.sums[i]:.3g} for a difference of {found.difference[i]:.3g}"
        rows.append((Heat(each.clip(0), i, text), Heat((-each).clip(0), i)))
    worst = float(found.error.max())
    if worst > TOLERANCE:
        notes.append(
            f"integrated gradients: sums miss the score's difference by up to {worst:.0%} (more than "
            f"{TOLERANCE:.0%}): the score bends sharply between the grey image and this one"
        )
    caption = (
        f"What each spot adds to the {subject.target.unit} (left) or takes from it (right), compared with an "
        "image of the data's mean colour: gradients summed on the straight way between the two. All values "
        f"together sum to the difference of the two scores; here they miss it by {worst:.1%} at most."
    )
    shows = Rows(("adds", "takes"), tuple(rows))
    return Explanation("Integrated gradients", caption, (shows,), {"gradients": maps}, tuple(notes))


KIND = Kind(name="gradients", explain=explain, one_map=one_map)
