"""Relative motions of two poses, and their patterns [Jayaraman 2015, section 3.2]."""

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor, nn

_MATRIX = 12  # numbers of a 3 x 4 matrix
_DIGITS = 0.1  # of a motion, by which rounding may change it ...
_LARGE = 1e4  # ... of numbers above this, such as coordinates of a map


def between(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], period: float) -> Float[Tensor, "b m"]:
    """How the second pose lies as seen from the first.

    12 numbers are a 3 x 4 camera-to-world matrix [R | t], row by row: the relative pose T_i^-1 T_j as a
    rotation vector (radians) and a translation in the first camera's axes. 1 number is an angle: cosine and
    sine of the difference; `period` is its full turn, and 0 a number without one. Else: differences.
    """
    d = first.shape[-1]
    if d == 1 and period:
        angle = (second - first) * (2 * torch.pi / period)
        return torch.cat([angle.cos(), angle.sin()], -1)
    if d != _MATRIX:
        return second - first
    one, two = first.unflatten(-1, (3, 4)), second.unflatten(-1, (3, 4))
    inverse = one[..., :3].mT
    translation = inverse @ (two[..., 3:] - one[..., 3:])
    return torch.cat([_rotation_vector(inverse @ two[..., :3]), translation[..., 0]], -1)


def checked(poses: Float[np.ndarray, "p 2 d"]) -> Float[Tensor, "p 2 d"]:
    """The poses; ValueError where they are so large that fp32, in which they come, loses the motions."""
    steps = np.sqrt(((poses[:, 1] - poses[:, 0]) ** 2).mean(0))
    if poses.shape[-1] == _MATRIX:  # rotations are small numbers; of a translation, its length counts
        steps[3::4] = np.sqrt((steps[3::4] ** 2).sum())
    largest = np.abs(poses).max((0, 1))
    rounding = np.spacing(largest.astype(np.float32))
    if (coarse := (steps > 0) & (largest > _LARGE) & (rounding > _DIGITS * steps)).any():
        k = int(coarse.argmax())
        raise ValueError(
            f"egomotion: number {k} of a pose is up to {largest[k]:,.0f}, where 32 bits round by "
            f"{rounding[k]:.2g}, and frames are {steps[k]:.2g} apart: subtract the mean of its column"
        )
    return torch.from_numpy(poses)


def _rotation_vector(r: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3"]:
    """Axis times angle in [0, pi) of rotation matrices."""
    skew = (r - r.mT) / 2
    axis = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)  # times sin(angle)
    sine = axis.norm(dim=-1, keepdim=True)
    cosine = (r.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - 1) / 2
    return axis * torch.where(sine > 1e-9, torch.atan2(sine, cosine) / sine.clamp(min=1e-9), 1.0)


class Maps(nn.Module):
    """Patterns of motion, and for each a matrix of features, at first the identity.

    motions: those of the training images, float64. poses have `size` numbers, with a full turn of `period`.
    At most `patterns` clusters by k-means: as many as there are different motions if those are fewer.
    Rotation and translation of a matrix are scaled to equal spread, cosine and sine alike, other numbers each
    by itself. The matrices do not decay, which would shrink them.
    """

    undecayed = ("matrices",)
    centres: Float[Tensor, "g m"]
    scale: Float[Tensor, "m"]

    def __init__(
        self, motions: Float[Tensor, "p m"], size: int, period: float, patterns: int, dim: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.period = period
        variance = motions.var(0, correction=0)
        if size == _MATRIX:
            variance = variance.view(2, 3).mean(1).repeat_interleave(3)
        elif size == 1 and period:
            variance = variance.mean().expand_as(variance)
        scale = variance.sqrt().clamp(min=1e-9)
        points = (motions / scale).numpy()
        different = len(np.unique(points.round(3), axis=0))
        means = KMeans(min(patterns, different), n_init=4, random_state=seed)  # pyright: ignore[reportArgumentType]
        clusters = means.fit(points).cluster_centers_
        clusters = clusters[np.lexsort(clusters.round(3).T)]  # k-means' own order is arbitrary
        self.register_buffer("centres", torch.from_numpy(clusters).float())
        self.register_buffer("scale", scale.float())
        self.matrices = nn.Parameter(torch.eye(dim).repeat(len(clusters), 1, 1))

    def pattern(self, poses: Float[Tensor, "b 2 d"]) -> Int[Tensor, "b"]:
        """The nearest pattern of the motion between two poses."""
        motions = between(poses[:, 0].float(), poses[:, 1].float(), self.period)
        return (motions[:, None] / self.scale - self.centres).square().sum(-1).argmin(1)
