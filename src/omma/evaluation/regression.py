"""Regression of numbers on frozen features: ridge and k-NN, R2 and mean absolute error, and angles.

What a probe chooses (penalty, k) has the least squared error on train images that are held out: each by
itself, or where images have groups, whole groups of them. The test part is read for the final prediction
alone.

An angle y of a period is regressed as the point (cos, sin) of 2 pi y / period, and its error is the shorter
way round. In place of R2 stands 1 - D(error) / D(y) with the circular dispersion D = 1 - mean resultant
length about the best constant direction [Mardia & Jupp 2000, section 2.3]:

    1 - mean(1 - cos(error)) / (1 - |mean(exp(i y))|)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.evaluation import confidence, knn, ridge
from omma.evaluation.metrics import Figure
from omma.evaluation.split import Pairs, folds, standardise
from omma.ops.nearest import top

KS = (1, 2, 5, 10, 20, 50, 100)
PROTOCOLS = ("ridge", "knn")
FITS = ("r2", "circular_r2")
NAMES = {"r2": "R2", "circular_r2": "circular R2", "mae": "MAE"}
FOLDS = 5  # of groups
CHUNK = 2**26  # similarities at once


@dataclass(frozen=True)
class Target:
    """What is regressed: numbers, or with a period angles."""

    name: str
    period: float | None = None

    def __post_init__(self) -> None:
        if self.period is not None and not 0 < self.period < np.inf:
            raise ValueError(f"--target-period {self.period}: must be above 0; 360 for degrees")

    def encoded(self, y: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n t"]:
        """What a probe fits: the number, or (cos, sin)."""
        if self.period is None:
            return y[:, None]
        turn = 2 * np.pi * y / self.period
        return np.stack([np.cos(turn), np.sin(turn)], 1)

    def decoded(self, fitted: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "n"]:
        """The number, or the angle of (cos, sin) in [0, period)."""
        if self.period is None:
            return fitted[:, 0]
        return (np.arctan2(fitted[:, 1], fitted[:, 0]) / (2 * np.pi) * self.period) % self.period

    def error(self, y: Float[np.ndarray, "n"], predicted: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """Absolute errors, those of angles the shorter way round, in units of the target."""
        away = np.abs(y - predicted)
        if self.period is None:
            return away
        away = away % self.period
        return np.minimum(away, self.period - away)

    @property
    def metric(self) -> str:
        """The name of what stands for R2."""
        return "r2" if self.period is None else "circular_r2"

    def constant(self, y: Float[np.ndarray, "n"]) -> float:
        """The mean, or the mean direction: what a predictor answers that reads no image."""
        return float(self.decoded(self.encoded(y).mean(0, keepdims=True))[0])


class Data(NamedTuple):
    """Features and numbers of both parts."""

    train: Float[np.ndarray, "n d"]
    train_y: Float[np.ndarray, "n"]
    test: Float[np.ndarray, "m d"]
    test_y: Float[np.ndarray, "m"]
    train_groups: Int[np.ndarray, "n"] | None = None
    test_groups: Int[np.ndarray, "m"] | None = None


class Answer(NamedTuple):
    """Predicted numbers of the test part, and what the probe chose."""

    predictions: Float[np.ndarray, "m"]
    settings: dict[str, Any]


def checked(data: Data) -> Data:
    """The data, fp32 and fp64; ValueError if no probe can use them."""
    for name, x, y in (("train", data.train, data.train_y), ("test", data.test, data.test_y)):
        if x.ndim != 2 or len(x) != len(y):
            raise ValueError(f"{name}: features {x.shape} do not match {len(y)} numbers")
        if len(y) < 2:
            raise ValueError(f"{name} part: {len(y)} images have a number, and two at least are needed")
        if not np.isfinite(y).all():
            raise ValueError(f"{name} part: some numbers are not finite; leave these images out")
        if not np.isfinite(x).all():
            raise ValueError(f"{name}: some features are not finite; try precision fp32")
    if np.ptp(data.train_y) == 0:
        raise ValueError(f"all train images have the same number ({data.train_y[0]:g}): nothing to regress")
    return data._replace(
        train=np.ascontiguousarray(data.train, np.float32), test=np.ascontiguousarray(data.test, np.float32),
        train_y=data.train_y.astype(np.float64), test_y=data.test_y.astype(np.float64),
    )  # fmt: skip


def strata(y: Float[np.ndarray, "n"], number: int = 5) -> Int[np.ndarray, "n"]:
    """Fifths of the images by their number, so that parts of a split can have the same range."""
    edges = np.quantile(y, np.arange(1, number) / number)
    return np.searchsorted(edges, y, side="right").astype(np.int64)


def group_pairs(y: Float[np.ndarray, "n"], groups: Int[np.ndarray, "n"] | None, seed: int) -> Pairs | None:
    """Whole groups held out of the train part in turn; None without groups, where each image is by itself.

    Raises ValueError where all images are of one group.
    """
    if groups is None:
        return None
    if len(np.unique(groups)) < 2:
        raise ValueError(
            "all train images are of one group, so no group can be held out to choose a probe's strength; "
            "give more groups, or --group none"
        )
    # by one stratum, of which every group may be held out, where fifths of the numbers lie in single groups
    for labels in (strata(y), np.zeros(len(y), np.int64)):
        pairs = folds(labels, seed, FOLDS, groups)
        if len(pairs) > 1 and sum(len(held_out) for _, held_out in pairs) == len(y):
            return pairs
    return pairs


# ---------------------------------------------------------------- probes
@torch.inference_mode()
def ridge_answer(data: Data, target: Target, seed: int = 0, device: torch.device | str = "cpu") -> Answer:
    """Least squares with an L2 penalty, lambda = penalty x train images, on standardised features.

    Without groups, the penalty has the least leave-one-out error in closed form [Hastie 2009, eq. 7.64].
    """
    data = checked(data)
    y = target.encoded(data.train_y)
    pairs = group_pairs(data.train_y, data.train_groups, seed)
    if pairs is None:
        _, errors = _path(data.train, y, None, device)
    else:
        every = [_path(data.train[f], y[f], data.train[h], device)[0] for f, h in pairs]
        held_out = np.concatenate([y[h] for _, h in pairs])
        errors = ((np.concatenate(every, 1) - held_out) ** 2).sum(2).mean(1)
    best = int(np.argmin(errors))  # ties: the strongest
    fitted, _ = _path(data.train, y, data.test, device)
    return Answer(target.decoded(fitted[best]), _settings("penalty", ridge.PENALTIES[best], errors[best], y))


def _path(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n t"],
    test: Float[np.ndarray, "m d"] | None,
    device: torch.device | str,
) -> tuple[Float[np.ndarray, "p m t"], Float[np.ndarray, "p"]]:
    """Predictions for each of `ridge.PENALTIES`, and its mean squared leave-one-out error."""
    scaled = standardise(x, x[:0] if test is None else test)
    train, queries = (torch.from_numpy(each).to(device).double() for each in scaled)
    wanted = torch.from_numpy(y).to(device)
    offset, n = wanted.mean(0), len(train)
    wanted = wanted - offset
    left, power = ridge.basis(train)
    projected = left.T @ wanted
    across = queries @ (train.T @ left)
    predictions, errors = [], []
    for penalty in ridge.PENALTIES:
        predictions.append((across @ (projected / (power + penalty * n)[:, None]) + offset).cpu().numpy())
        shrink = power / (power + penalty * n)
        leverage = 1 / n + left.square() @ shrink
        residual = (wanted - left @ (shrink[:, None] * projected)) / (1 - leverage).clamp(min=1e-9)[:, None]
        errors.append(float(residual.square().sum(1).mean()))
    return np.stack(predictions), np.array(errors)


@torch.inference_mode()
def knn_answer(data: Data, target: Target, seed: int = 0, device: torch.device | str = "cpu") -> Answer:
    """The mean of the k nearest train images by cosine, weighted by exp(cos / T) as for classes.

    k has the least error on train images, each predicted by the others, or by those of other groups.
    """
    data = checked(data)
    y = target.encoded(data.train_y)
    groups = np.arange(len(y)) if data.train_groups is None else data.train_groups
    alone = np.bincount(np.unique(groups, return_inverse=True)[1].reshape(-1)).max()
    if alone == len(y):
        group_pairs(data.train_y, groups, seed)  # raises ValueError
    ks = knn.capped([k for k in KS if k <= len(y) - alone] or [1], len(y))
    own = _averages(data.train, y, data.train, ks, device, groups)
    errors = ((own - y) ** 2).sum(2).mean(1)
    best = int(len(ks) - 1 - np.argmin(errors[::-1]))  # ties: the smoothest
    fitted = _averages(data.train, y, data.test, (ks[best],), device)
    return Answer(target.decoded(fitted[0]), _settings("k", ks[best], errors[best], y))


def _averages(
    bank: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n t"],
    queries: Float[np.ndarray, "m d"],
    ks: Sequence[int],
    device: torch.device | str,
    groups: Int[np.ndarray, "n"] | None = None,
) -> Float[np.ndarray, "p m t"]:
    """Weighted means of the nearest, for each k. groups: of the bank, whose images are the queries."""
    unit = torch.nn.functional.normalize(torch.from_numpy(bank).to(device), dim=1)
    values = torch.from_numpy(y).to(device)
    codes = None if groups is None else torch.from_numpy(groups).to(device)
    means, chunk = [], max(1, CHUNK // len(bank))
    for i, part in enumerate(torch.from_numpy(queries).to(device).split(chunk)):
        similarity = torch.nn.functional.normalize(part, dim=1) @ unit.T
        if codes is not None:
            similarity[codes[i * chunk : i * chunk + len(part), None] == codes] = -torch.inf
        near, index = top(similarity, ks[-1])
        weight = ((near - near[:, :1]) / knn.TEMPERATURE).exp().double()[:, :, None]
        weighted = weight * values[index]
        means.append(torch.stack([weighted[:, :k].sum(1) / weight[:, :k].sum(1) for k in ks]))
    return torch.cat(means, 1).cpu().numpy()


def _settings(name: str, value: float, error: float, y: Float[np.ndarray, "n t"]) -> dict[str, Any]:
    """The choice, and the share of the train part's variance that it explains where it was held out."""
    spread = float(((y - y.mean(0)) ** 2).sum(1).mean())
    return {name: value, "held_out_r2": round(1 - float(error) / spread, 4)}


# ---------------------------------------------------------------- figures
class Measured(NamedTuple):
    """R2 (or its circular kin) and mean absolute error, with the draws of the former."""

    fit: Figure
    mae: Figure
    draws: Float[np.ndarray, "r"]


def measure(data: Data, predicted: Float[np.ndarray, "m"], target: Target, seed: int = 0) -> Measured:
    """Figures of predictions of the test part, with intervals over drawn images, or groups.

    Draws of images that all have one number have no R2 (NaN), and intervals leave them out. Raises ValueError
    if all test images have one.
    """
    y, groups = data.test_y, confidence.several(data.test_groups)
    away = target.error(y, predicted)
    lost = away**2 if target.period is None else 1 - np.cos(2 * np.pi * away / target.period)
    code = target.encoded(y - y.mean() if target.period is None else y)
    draws = []
    for weights in confidence.resamples(len(y), seed, groups=groups):
        draws.append(1 - (lost @ weights) / _spread(code, weights.astype(np.float64), target))
    value = 1 - lost.sum() / _spread(code, np.ones((len(y), 1)), target)[0]
    if not np.isfinite(value):
        raise ValueError(
            f"all {len(y):,} test images have the same {target.name} ({y[0]:g}), so nothing can be "
            "explained: test on images, or groups, of several values"
        )
    found = np.concatenate(draws)
    low, high = confidence.percentiles(found)
    mae = Figure(float(away.mean()), confidence.mean(away, seed, groups=groups))
    return Measured(Figure(float(value), (float(low), float(high))), mae, found)


def _spread(
    code: Float[np.ndarray, "m t"], weights: Float[np.ndarray, "m b"], target: Target
) -> Float[np.ndarray, "b"]:
    """What the best constant of each draw loses: squares about the mean, or n - |sum of (cos, sin)|.

    NaN where the numbers are the same, but for rounding.
    """
    total = weights.sum(0)
    sums = code.T @ weights
    if target.period is None:
        most = (code[:, 0] ** 2) @ weights
        lost = most - sums[0] ** 2 / total
    else:
        most, lost = total, total - np.sqrt((sums**2).sum(0))
    return np.where(lost > 1e-12 * most, lost, np.nan)
