"""What a split by image would read on images that belong together, beside a split by group, on the same data.

Near copies of the test images lie in the train part of a split by image, so k-NN finds them. The difference
to a split by group is the leakage [Kaufman et al. 2012, "Leakage in data mining", ACM TKDD 6(4)].
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from omma.core.words import count
from omma.data.sources import split as splitting
from omma.evaluation import confidence, knn
from omma.evaluation.metrics import Figure

FEW = 10  # groups of a test part below which intervals that draw groups are too narrow


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """k-NN of the trained network by two splits of the same images."""

    group: str  # the column
    k: int
    by_image: Figure  # top-1
    by_group: Figure
    leaking: float  # share of the test images by image that have others of their group in the train part
    own_split: str = ""  # the split by image is the collection's own, and was used; in words
    straddling: int = 0  # groups on both sides of it ...
    groups: int = 0  # ... of so many that it has
    named: bool = False  # the user named the parts of that split, which `--group` leaves as they are

    def sentence(self) -> str:
        """What a split by image reads too much, in words."""
        image, group = _read(self.by_image), _read(self.by_group)
        if self.own_split:
            split = f"the split {self.own_split}" if self.named else self.own_split
            remedy = "" if self.named else f", which --group {self.group} makes"
            return (
                f"{self.straddling:,} of {count(self.groups, 'group')} by {self.group} are on both sides of "
                f"{split} ({self.leaking:.0%} of its test images have others of theirs in the train part): "
                f"k-NN (k={self.k}) reads {image} by it, and {group} with a split by {self.group}{remedy}"
            )
        if self.by_image.value <= self.by_group.value:
            return (
                f"a split by image would put others of their {self.group} into the train part for "
                f"{self.leaking:.0%} of the test images, but k-NN (k={self.k}) would not read more: {image}; "
                f"by {self.group} it is {group}"
            )
        return (
            f"a split by image would leak: k-NN (k={self.k}) would read {image}, since {self.leaking:.0%} of "
            f"the test images have others of their {self.group} in the train part; by {self.group} it is "
            f"{group}"
        )

    def to_json(self) -> dict[str, Any]:
        """The fields; figures as `value` and `interval95`."""
        figures = {name: getattr(self, name)._asdict() for name in ("by_image", "by_group")}
        return {**asdict(self), **figures, "difference": self.by_image.value - self.by_group.value}


def measure(
    vectors: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    is_test: Bool[np.ndarray, "n"],
    name: str,
    own_split: str = "",
    named: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Leakage | None:
    """Leakage of a split by image; None if it has none, or where no split by group is possible.

    is_test: the test part of the split that is used, the rest is its train part. If groups are on both sides
    of it, it is one by image (own_split: in words; named: its parts are the user's) and one by group is made
    to compare, else the other way round; both have test parts of about one size. name: of the groups' column.
    """
    both = np.intersect1d(groups[is_test], groups[~is_test])
    used = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    share = float(is_test.mean())
    other = splitting.stratified(labels, share, seed, groups if len(both) else None)
    by_image, by_group = (used, other) if len(both) else (other, used)
    if not all(len(part) for part in other):
        return None
    leaking = float(np.isin(groups[by_image[1]], groups[by_image[0]]).mean())
    if not leaking:
        return None
    (k,) = knn.capped((knn.HEADLINE,), min(len(by_image[0]), len(by_group[0])))
    figures = []
    for train, test in (by_image, by_group):
        correct = knn.predict(vectors[train], labels[train], vectors[test], k, device=device) == labels[test]
        # a split by image that is not used gets the interval that it would be read with
        draws_groups = test is not other[1] or not len(np.intersect1d(groups[train], groups[test]))
        within = confidence.several(groups[test]) if draws_groups else None
        figures.append(Figure(float(correct.mean()), confidence.bootstrap(correct, seed, groups=within)))
    return Leakage(
        group=name,
        k=k,
        by_image=figures[0],
        by_group=figures[1],
        leaking=leaking,
        own_split=own_split if len(both) else "",
        straddling=len(both),
        groups=len(np.unique(groups)),
        named=named and len(both) > 0,
    )


def _read(figure: Figure) -> str:
    low, high = figure.interval95
    return f"{figure.value:.1%} ({100 * low:.1f} to {100 * high:.1f})"
