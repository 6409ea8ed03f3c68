"""Is it learning, or has it collapsed? A verdict in words from features and metrics, without labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.protocols import HealthSignal
from omma.core.words import count
from omma.ops import statistics

State = Literal["collapsed", "idle", "learning", "early", "unknown"]

TOO_EARLY = 0.1  # share of the run before which only features that are not finite are judged
FEW = 16  # images of the sample below which nothing differs clearly from chance
RANK = 3.0  # effective rank of the centred features, below which they have collapsed, or ...
NARROW = 0.15  # ... share of the start's, if it is also under a tenth of the dimensions
# In telling views of an image from other images: share of the start's lead over chance that a collapse leaves
LEFT = 0.5
# Change of that share since the start that counts as learning, if beyond doubt (benchmarks/verdicts.py)
LEARNED = 0.01
ENOUGH = 5.0  # epochs, after which an idle run needs more than time
# Share of the start's nearest neighbours that are neighbours still ...
SAME = 0.95  # ... from where the network counts as unchanged
MOST_KEPT = 0.5  # ... above which an untrained network has learned little, whatever else improves
# 1 - mean cosine between images, below which features count as close. Masked methods' features share one
# large direction and differ in many small ones, so this alone is no collapse.
SPREAD = 0.02
ROUNDING = 0.001  # the same, of runs that an earlier version began: differences below it are rounding


@dataclass(frozen=True)
class Reading:
    """Features of a fixed held-out sample at one moment; None: not measured (by an earlier version, say)."""

    step: int
    progress: float
    rank: float  # RankMe of the features as they are [Garrido 2023]
    centred_rank: float  # the same without the mean feature: 0 if all features are equal
    std: float  # mean over dimensions of the unit features' deviation, times sqrt(d): 1 if most even
    spread: float  # 1 - mean cosine between different images
    dim: int
    finite: bool = True
    epochs: float | None = None  # passes over the images so far
    images: int | None = None  # in the sample
    alike: bool = False  # do the pictures of the sample show the same?
    view_auc: float | None = None  # mean of `alignment.view_auc`: .5 is chance, 1 perfect
    # 99 % interval of its change since the start, paired over the images
    view_auc_low: float | None = None
    view_auc_high: float | None = None
    # lower end of the 99 % interval of k-NN's change since the start, of methods that learn from labels
    knn_low: float | None = None
    neighbours_kept: float | None = None  # share of the start's nearest neighbours that are neighbours still


@dataclass(frozen=True)
class Verdict:
    """The verdict for the owner."""

    level: str  # "good" | "warn" | "bad"
    text: str  # its name, a colon, and what was measured
    remedy: str = ""  # what to do about it; empty for "good"
    state: State = "unknown"

    def __str__(self) -> str:
        return f"{self.text}. {self.remedy}".strip() if self.remedy else self.text


def logged(line: Mapping[str, Any]) -> Verdict:
    """The verdict of a line of metrics.jsonl; its text holds the remedy."""
    return Verdict(line["verdict"], line["text"], state=line.get("state", "unknown"))


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
    readings: Sequence[Reading],
    metrics: Mapping[str, float],
    signals: Sequence[HealthSignal] = (),
    continued: bool = False,
) -> Verdict:
    """The verdict after the last reading; the first is the untrained network's or, `continued`, the weights'.

    collapsed: features tell images apart no more; idle: no better than at the start; learning: better, by an
    interval. `metrics`: recent means of what the method reports; `signals`: which of them show trouble
    (`Method.health_signals`).
    """
    first, now = readings[0], readings[-1]
    if not now.finite:
        remedy = "Lower the learning rate (--lr) or use --precision fp32"
        return Verdict("bad", "broken: features are not finite numbers", remedy, "collapsed")
    if cause := _unjudgeable(now):
        return cause
    if now.progress < TOO_EARLY:
        return Verdict("good", f"too early to tell: {now.progress:.0%} of the run is done", state="early")
    shown = [signal for signal in signals if _shows(signal, metrics)]
    if cause := _collapse(first, now):
        remedy = next((signal.remedy for signal in shown if signal.kind == "remedy"), "Lower --lr")
        return Verdict("bad", f"collapsed: {cause}{_after(now)}", remedy, "collapsed")
    unchanged = (now.neighbours_kept or 0.0) >= SAME
    learned = _learned(first, now, continued)
    for signal in shown:
        if signal.kind == "verdict" and not unchanged and (signal.level == "bad" or not learned):
            most = metrics[signal.of] if signal.of else 1.0
            cause = signal.text.format(value=metrics[signal.metric], of=most)
            if signal.level == "warn":
                return _idle(now, cause, signal.remedy)
            return Verdict("bad", f"collapsed: {cause}{_after(now)}", signal.remedy, "collapsed")
    return _progress(first, now, unchanged, learned)


def _progress(first: Reading, now: Reading, unchanged: bool, learned: bool) -> Verdict:
    """Has a network that did not collapse learned anything since the start?"""
    rank = f"features span {now.centred_rank:.1f} directions, {first.centred_rank:.1f} at the start"
    if now.view_auc is None or first.view_auc is None or now.view_auc_low is None:
        return Verdict("good", f"not collapsed: {rank}{_after(now)}")
    if unchanged or (_views_better(first, now) and not learned):
        return _idle(now, f"{now.neighbours_kept:.0%} of the nearest neighbours are those of the start")
    shares = f"{now.view_auc:.1%} of comparisons, {first.view_auc:.1%} at the start"
    if not learned:
        return _idle(now, f"two views of an image are told from other images no better ({shares})")
    new = "" if now.neighbours_kept is None else f"; {1 - now.neighbours_kept:.0%} of neighbours are new"
    if not _views_better(first, now):
        text = "learning: k-NN on held-out images is better than at the start"
    else:
        text = f"learning: two views of an image are told from other images in {shares}"
    return Verdict("good", f"{text}{new}; {rank}{_after(now)}", state="learning")


def _learned(first: Reading, now: Reading, continued: bool) -> bool:
    """Is it better than at the start, beyond doubt?"""
    if now.knn_low is not None and now.knn_low > 0:
        return True
    return _views_better(first, now) and (continued or (now.neighbours_kept or 0.0) <= MOST_KEPT)


def _views_better(first: Reading, now: Reading) -> bool:
    if now.view_auc is None or first.view_auc is None or now.view_auc_low is None:
        return False
    return now.view_auc_low > 0 and now.view_auc - first.view_auc > LEARNED


def _after(now: Reading) -> str:
    if now.epochs is None:
        return ""
    passes = f"{now.epochs:,.0f}" if now.epochs >= 10 else f"{now.epochs:.2g}"
    return f", after {passes} epoch{'' if passes == '1' else 's'}"


def _idle(now: Reading, cause: str, remedy: str = "") -> Verdict:
    if not remedy:
        young = now.epochs is None or now.epochs < ENOUGH
        remedy = "Train longer (--epochs, --budget)" if young else "Raise or lower --lr, or train longer"
    text = f"not collapsed, nothing learned yet: {cause}{_after(now)}"
    return Verdict("warn", text, remedy, "idle")


def _unjudgeable(now: Reading) -> Verdict | None:
    """The verdict on a sample that can show nothing, whatever is learned; None for any other."""
    if now.images is not None and now.images < FEW:
        text = f"cannot be judged: {count(now.images, 'image')} cannot show what is learned"
        return Verdict("warn", text, f"Give at least {FEW}; hundreds for features worth having")
    if now.alike:
        text = f"cannot be judged: all {now.images:,} images of the sample look the same to the network"
        return Verdict("bad", text, "Check the files: different pictures, and values that are not cut off")
    return None


def _collapse(first: Reading, now: Reading) -> str:
    """How the features have collapsed, in words; "" if they have not."""
    rank, before = now.centred_rank, first.centred_rank
    if (rank < RANK and rank < before) or (rank < NARROW * before and rank < 0.1 * now.dim):
        return f"features span {rank:.1f} directions of {now.dim}, {before:.1f} at the start"
    close = now.spread < SPREAD and now.spread < 0.5 * first.spread
    if now.view_auc is None or first.view_auc is None or now.view_auc_high is None:
        if close and (now.spread < ROUNDING or rank <= before):
            return f"all features within {max(now.spread, 0):.1e} in cosine"
        return ""
    lost = now.view_auc - 0.5 < LEFT * (first.view_auc - 0.5)
    if lost or (now.view_auc_high < 0 and (close or rank < 0.5 * before)):
        return (
            f"two views of an image are told from other images in {now.view_auc:.1%} of comparisons, "
            f"{first.view_auc:.1%} at the start (50% is chance)"
        )
    return ""


def _shows(signal: HealthSignal, metrics: Mapping[str, float]) -> bool:
    """Does the signal's metric exceed its limit? False if it is not reported."""
    if signal.metric not in metrics:
        return False
    return metrics[signal.metric] > signal.limit * (metrics[signal.of] if signal.of else 1.0)
