"""Core-set selection: k-center greedy [Sener 2018, arXiv 1708.00489, algorithm 1]."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Centers:
    """Rows in the order in which they were chosen."""

    rows: Int[np.ndarray, "m"]
    distance: Float[np.ndarray, "m"]  # to the nearest of those before, when chosen; inf: there was none
    nearest: Int[np.ndarray, "n"]  # which of these (0 to m - 1) is nearest to each row; -1: a covered one
    radius: float  # from the row that is farthest from all that are chosen


@torch.inference_mode()
def k_center(
    vectors: Float[np.ndarray, "n d"], k: int, covered: Float[np.ndarray, "c d"] | None = None
) -> Centers:
    """k rows, each the farthest from those chosen before and from `covered` (images labelled already).

    Its radius is at most twice the least possible. The first without `covered` is the row nearest to the
    mean. Fewer than k where all other rows equal chosen ones. Euclidean; k passes over `vectors`.
    """
    rows = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
    length = rows.square().sum(1)
    distances = torch.full((len(rows),), torch.inf)
    nearest = torch.full((len(rows),), -1, dtype=torch.long)
    chosen, reached = list[int](), list[float]()
    for center in () if covered is None else torch.from_numpy(np.ascontiguousarray(covered, np.float32)):
        distances = torch.minimum(distances, _to(rows, length, center))
    while len(chosen) < min(k, len(rows)):
        if torch.isinf(distances[0]):
            farthest = int(_to(rows, length, rows.mean(0)).argmin())
        else:
            farthest = int(distances.argmax())
        if (distance := float(distances[farthest])) == 0:
            break
        own = _to(rows, length, rows[farthest])
        own[farthest] = 0
        nearest[own < distances] = len(chosen)
        distances = torch.minimum(distances, own)
        chosen.append(farthest)
        reached.append(distance**0.5)
    radius = float(distances.max().sqrt()) if len(rows) else 0.0
    return Centers(np.array(chosen, np.int64), np.array(reached, np.float32), nearest.numpy(), radius)


def _to(rows: torch.Tensor, length: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
    """Squared distance of each row to a center; 0 below the noise of fp32."""
    squared = length + center.square().sum() - 2 * (rows @ center)
    return squared.where(squared > 1e-6 * (length + 1e-12), torch.zeros(()))
