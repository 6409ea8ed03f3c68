"""Is it learning, or has it collapsed? A verdict in words from features and metrics, without labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from omma.ops import statistics

TOO_EARLY = 0.1  # share of the run before which nothing but broken numbers is judged
# 1 - mean cosine between images, under which features count as all alike, unless they span more directions
# than the untrained network's did: masked methods' share one large direction and differ in many small ones
SPREAD = 0.02
NOTHING = 0.001  # the same, under which what differs is rounding
RANK = 3.0  # effective rank of the centred features, under which they span next to nothing


@dataclass(frozen=True)
class Reading:
    """Features of a fixed held-out sample at one moment."""

    step: int
    progress: float
    rank: float  # RankMe of the features as they are [Garrido 2023]
    centred_rank: float  # the same after taking off the mean: 0 if all features are equal
    std: float  # mean over dimensions of the unit features' deviation, times sqrt(d): 1 is the most even
    spread: float  # 1 - mean cosine between different images
    dim: int
    finite: bool = True


@dataclass(frozen=True)
class Verdict:
    """What to tell the owner."""

    level: str  # "good" | "warn" | "bad"
    text: str  # what is seen, with the numbers
    remedy: str = ""  # what to do about it; empty for "good"

    def __str__(self) -> str:
        return f"{self.text}. {self.remedy}".strip() if self.remedy else self.text


def read(features: Float[Tensor, "n d"], step: int, progress: float) -> Reading:
    """Measure the features of the held-out sample; needs at least 2 images for anything but the rank."""
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


def judge(readings: Sequence[Reading], metrics: Mapping[str, float]) -> Verdict:
    """The verdict after the last reading; the first reading is the untrained network's.

    `metrics`: recent means of what the method reports. Known: `teacher_entropy`, `teacher_kl_to_uniform` and
    the most that either can be, `teacher_entropy_limit` (nats); `uniformity`; `error_vs_mean_image`.
    """
    first, now = readings[0], readings[-1]
    if not now.finite:
        return Verdict(
            "bad",
            "broken: features are not finite numbers",
            "Lower the learning rate (--lr) or use --precision fp32",
        )
    if now.progress < TOO_EARLY:
        return Verdict("good", f"too early to tell: {now.progress:.0%} of the run is done")

    seen = f"effective rank {now.rank:.1f} of {now.dim}, images differ by {now.spread:.3f} in cosine"
    close = now.spread < SPREAD and now.spread < 0.5 * first.spread
    alike = close and (now.spread < NOTHING or now.centred_rank <= first.centred_rank)
    if alike or now.centred_rank < RANK:
        cause = (
            f"all features within {now.spread:.1e} in cosine"
            if alike
            else f"features span {now.centred_rank:.1f} directions of {now.dim}"
        )
        return Verdict("bad", f"collapsed: {cause}", _remedy(metrics))

    if "teacher_entropy" in metrics:
        entropy, kl = metrics["teacher_entropy"], metrics["teacher_kl_to_uniform"]
        most = metrics["teacher_entropy_limit"]
        if entropy > 0.98 * most:
            return Verdict(
                "bad",
                f"collapsed: the teacher's targets are uniform (entropy {entropy:.2f} of {most:.2f} nats), "
                "they teach nothing",
                "Lower --method.teacher-temp or --lr",
            )
        if kl > 0.75 * most:
            return Verdict(
                "bad",
                f"collapsed: nearly all images are given the same prototype (KL to uniform {kl:.2f} of "
                f"{most:.2f} nats)",
                "Never switch centring off; raise --method.teacher-temp, or lower --lr",
            )
    if metrics.get("uniformity", -1.0) > -0.1:
        return Verdict(
            "bad",
            f"collapsed: projections are all alike (uniformity {metrics['uniformity']:.2f}, 0 is collapse)",
            "Lower --lr, or use a larger batch",
        )
    if metrics.get("error_vs_mean_image", 0.0) > 0.98:
        return Verdict(
            "warn",
            f"not learning yet: reconstructions are no better than a constant picture "
            f"({metrics['error_vs_mean_image']:.2f} of its error)",
            "Train longer, or change the learning rate (--lr)",
        )
    if now.centred_rank < 0.25 * first.centred_rank and now.centred_rank < 0.1 * now.dim:
        return Verdict(
            "warn",
            f"narrowing: features span {now.centred_rank:.1f} directions, at the start they spanned "
            f"{first.centred_rank:.1f}",
            "Judge it with labels if you have any (omma evaluate); lower --lr if it goes on",
        )
    return Verdict("good", f"healthy: {seen}")


def _remedy(metrics: Mapping[str, float]) -> str:
    """What usually helps, by the kind of method that the metrics show."""
    if "teacher_entropy" in metrics:
        if metrics["teacher_entropy"] > 0.9 * metrics["teacher_entropy_limit"]:
            return "Lower --method.teacher-temp or --lr"
        return "Never switch centring off; raise --method.momentum, or lower --lr"
    if "uniformity" in metrics:
        return "Lower --lr, use a larger batch, or raise --method.temperature"
    return "Lower --lr"
