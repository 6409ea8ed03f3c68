"""Does a run that starts from weights retain what they knew? Compared with the start, on the same images."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from omma.pretraining.health import Verdict

NEIGHBOURS = 10  # of each image; fewer where there are not four times as many others
REMEDY = "Lower --lr, train for fewer steps, or keep the encoder frozen for longer (--head-warmup)"
UNTOLD = (
    "there are no labels to judge by: the share of nearest neighbours that are still those of the start says "
    "how much changed, not whether the change is for the better"
)


@dataclass(frozen=True)
class Start:
    """The first reading of the held-out sample, as far as it is remembered."""

    near: list[list[int]]  # nearest neighbours of each image within the sample
    correct: list[bool] | None  # which images online k-NN classified correctly, if there are labels
    view_auc: list[float] | None = (
        None  # `alignment.view_auc` of each image; None: begun by an earlier version
    )


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The network now compared with the network at the start."""

    kept: float | None  # share of the neighbours at the start that are neighbours still; None: too few images
    knn_start: float | None = None  # online k-NN top-1, if there are labels
    knn: float | None = None
    change: tuple[float, float] | None = None  # 99 % interval of knn - knn_start, paired

    @property
    def worse(self) -> bool:
        """Is it worse than at the start, beyond noise?"""
        return self.change is not None and self.change[1] < 0

    def metrics(self) -> dict[str, float]:
        """For metrics.jsonl, beside the online k-NN of the reading itself."""
        values = {"neighbours_kept": self.kept, "online_knn_start": self.knn_start}
        if self.change is not None:
            values |= {"online_knn_change_low": self.change[0], "online_knn_change_high": self.change[1]}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        if self.knn is not None:
            return f"k-NN {self.knn_start:.1%} at the start, {self.knn:.1%} now"
        return (
            "" if self.kept is None else f"{self.kept:.0%} of the nearest neighbours are those of the start"
        )


def neighbours(features: Float[Tensor, "n d"]) -> list[list[int]]:
    """Each image's nearest others by cosine, at most 10 and a quarter of them; features must be finite."""
    n = len(features)
    unit = torch.nn.functional.normalize(features, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-2.0)
    return similarity.topk(min(NEIGHBOURS, (n - 1) // 4), dim=1).indices.tolist()


def overlap(before: Sequence[Sequence[int]], now: Sequence[Sequence[int]]) -> float | None:
    """Mean share of an image's neighbours before that are still its neighbours; None without neighbours."""
    shares = [len({*a} & {*b}) / len(a) for a, b in zip(before, now, strict=True) if a]
    return sum(shares) / len(shares) if shares else None


def judge(verdict: Verdict, retention: Retention) -> Verdict:
    """The verdict on health, with what became of the first weights; a collapse outranks a loss."""
    if retention.worse and retention.change is not None and verdict.level != "bad":
        low, high = retention.change
        text = f"worse than it started: {retention} (the same images; 99 % interval of the change"
        return Verdict("warn", f"{text} {low:+.1%} to {high:+.1%})", REMEDY)
    if (text := str(retention)) in verdict.text:
        return verdict
    return dataclasses.replace(verdict, text=f"{verdict.text}; {text}")
