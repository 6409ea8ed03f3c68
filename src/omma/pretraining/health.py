"""Is it learning, or has it collapsed? A verdict in words from features and metrics, without labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.protocols import HealthSignal
from omma.ops import statistics

TOO_EARLY = 0.1  # share of the run before which only features that are not finite are judged
# 1 - mean cosine between images, below which features count as equal, unless they span more directions than
# the untrained network's: features of masked methods share one large direction and differ in many small ones
SPREAD = 0.02
ROUNDING = 0.001  # the same, below which features differ by rounding only
RANK = 3.0  # effective rank of the centred features, below which they have collapsed


@dataclass(frozen=True)
class Reading:
    """Features of a fixed held-out sample at one moment."""

    step: int
    progress: float
    rank: float  # RankMe of the features as they are [Garrido 2023]
    centred_rank: float  # the same without the mean feature: 0 if all features are equal
    std: float  # mean over dimensions of the unit features' deviation, times sqrt(d): 1 if most even
    spread: float  # 1 - mean cosine between different images
    dim: int
    finite: bool = True


@dataclass(frozen=True)
class Verdict:
    """The verdict for the owner."""

    level: str  # "good" | "warn" | "bad"
    text: str  # what was measured, with the numbers
    remedy: str = ""  # what to do about it; empty for "good"

    def __str__(self) -> str:
        return f"{self.text}. {self.remedy}".strip() if self.remedy else self.text


def read(features: Float[Tensor, "n d"], step: int, progress: float) -> Reading:
    """Measure the features of the held-out sample; with a single image only the rank is meaningful."""
    d = features.shape[1]
    if not bool(torch.isfinite(features).all()):
        return Reading(step, progress, math.nan, math.nan, math.nan, math.nan, d, False)
    unit = statistics.unit(features)
    n = len(unit)
    if n < 2:
        return Reading(step, progress, statistics.effective_rank(features), 1.0, 0.0, 0.0, d)
    cosine = float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1)))
    deviation = float(statistics.dimension_std(unit).mean()) * math.sqrt(d)
    return Reading(
        step,
        progress,
        statistics.effective_rank(features),
        statistics.effective_rank(unit - unit.mean(0)),
        deviation,
        1 - cosine,
        d,
    )


def judge(
    readings: Sequence[Reading], metrics: Mapping[str, float], signals: Sequence[HealthSignal] = ()
) -> Verdict:
    """The verdict after the last reading; the first reading is the untrained network's.

    `metrics`: recent means of what the method reports; `signals`: which of them show trouble
    (`Method.health_signals`).
    """
    first, now = readings[0], readings[-1]
    if not now.finite:
        remedy = "Lower the learning rate (--lr) or use --precision fp32"
        return Verdict("bad", "broken: features are not finite numbers", remedy)
    if now.progress < TOO_EARLY:
        return Verdict("good", f"too early to tell: {now.progress:.0%} of the run is done")
    shown = [signal for signal in signals if _shows(signal, metrics)]
    if cause := _collapse(first, now):
        remedy = next((signal.remedy for signal in shown if signal.kind == "remedy"), "Lower --lr")
        return Verdict("bad", f"collapsed: {cause}", remedy)
    for signal in shown:
        if signal.kind == "verdict":
            most = metrics[signal.of] if signal.of else 1.0
            text = signal.text.format(value=metrics[signal.metric], of=most)
            return Verdict(signal.level, text, signal.remedy)
    if now.centred_rank < 0.25 * first.centred_rank and now.centred_rank < 0.1 * now.dim:
        return Verdict(
            "warn",
            f"narrowing: features span {now.centred_rank:.1f} directions, at the start they spanned "
            f"{first.centred_rank:.1f}",
            "Judge it with labels if you have any (omma evaluate); lower --lr if it goes on",
        )
    differ = f"images differ by {now.spread:.3f} in cosine"
    return Verdict("good", f"healthy: effective rank {now.rank:.1f} of {now.dim}, {differ}")


def _collapse(first: Reading, now: Reading) -> str:
    """How the features have collapsed, in words; "" if they have not."""
    close = now.spread < SPREAD and now.spread < 0.5 * first.spread
    if close and (now.spread < ROUNDING or now.centred_rank <= first.centred_rank):
        return f"all features within {now.spread:.1e} in cosine"
    if now.centred_rank < RANK:
        return f"features span {now.centred_rank:.1f} directions of {now.dim}"
    return ""


def _shows(signal: HealthSignal, metrics: Mapping[str, float]) -> bool:
    """Does the signal's metric exceed its limit? False if it is not reported."""
    if signal.metric not in metrics:
        return False
    return metrics[signal.metric] > signal.limit * (metrics[signal.of] if signal.of else 1.0)
