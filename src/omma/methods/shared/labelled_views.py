"""Views, mixing and targets for learning from labels as DeiT does [Touvron 2020, 2012.12877, table 9]."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from omma.core.checks import above_zero, range_within_one, within_one
from omma.core.protocols import Batch, Crop, RandAugment, Schedule
from omma.core.random import Stream
from omma.methods.shared import crops
from omma.train import mixing

# The paper's recipe. Its epochs count views, of which an image has three in a step.
PAPER: dict[str, Any] = {
    "lr": 5e-4 * 1008 / 512, "rate_by_batch": "linear", "lr_end": 1e-5, "warmup": 5 / 300, "warmup_epochs": 5,
    "epoch_passes": 1 / 3,
    "schedule": Schedule(ramp="open", start=1e-6, whole=True, by="epoch", late=True),
    "weight_decay": 0.05, "clip": None, "drop_path": 0.1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Options of a method that learns from labels; the defaults are the paper's, for ImageNet."""

    smoothing: float = 0.1  # of the labels
    mixup: float = 0.8  # Beta's alpha; 0: off
    cutmix: float = 1.0
    mix_p: float = 1.0  # probability of mixing a pair ...
    switch_p: float = 0.5  # ... and then of CutMix rather than mixup
    operations: int = 2  # of RandAugment; 0: off
    magnitude: float = 9.0  # of 10
    erase_p: float = 0.25
    repeats: int = 3  # views per image in a batch [Hoffer 2019, arXiv 1901.09335]
    scale: tuple[float, float] = (0.08, 1.0)
    crop_size: int | None = None  # pixels of the views; None: the image size

    def __post_init__(self) -> None:
        within_one(self, "mix_p", "switch_p", "erase_p")
        range_within_one(self, "scale")
        if self.crop_size is not None:
            above_zero(self, "crop_size")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"method.smoothing={self.smoothing}: must lie in [0, 1) (the paper's: .1)")
        for name in ("mixup", "cutmix", "operations"):
            if getattr(self, name) < 0:
                raise ValueError(f"method.{name}={getattr(self, name)}: must be at least 0 (off)")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"method.magnitude={self.magnitude}: must lie in [0, 10] (the paper's: 9)")
        above_zero(self, "repeats")


def small(image_size: int) -> dict[str, Any]:
    """Options for 1,000 to 100,000 images on one machine: weaker augmentation, one view per image."""
    return {
        "mixup": 0.2, "cutmix": 1.0, "mix_p": 0.5, "operations": 1, "magnitude": 5.0, "erase_p": 0.0,
        "repeats": 1, "scale": (0.4, 1.0), "crop_size": crops.smaller(image_size),
    }  # fmt: skip


def plan(config: Labelled, image_size: int) -> tuple[Crop, ...]:
    """`repeats` crops, flipped at random, with RandAugment and random erasing."""
    c = config
    augment = RandAugment(count=c.operations, magnitude=c.magnitude) if c.operations else None
    size = c.crop_size or image_size
    return (Crop(count=c.repeats, size=size, scale=c.scale, augment=augment, erase_p=c.erase_p),)


class Examples(NamedTuple):
    """Mixed views with their targets, view after view: n = v b."""

    images: Float[Tensor, "n c s s"]
    targets: Float[Tensor, "n k"]  # zeros without a label
    weights: Float[Tensor, "n *k"]  # 0 without a label, else 1; of each class where an image has several


def examples(batch: Batch, classes: int, config: Labelled) -> Examples:
    """Views mixed in pairs (train/mixing.py), with their targets. Images without a label are not mixed.

    Label sets are not smoothed; what is not known of one of a pair is not known of the mixed one.
    """
    if batch.label_sets is not None:
        known = batch.label_sets >= 0
        targets = torch.cat([batch.label_sets.clamp(min=0), known.float()], dim=1)
        images, mixed = _mixed(batch, targets, known.any(1), config)
        return Examples(images, mixed[:, :classes], (mixed[:, classes:] > 1 - 1e-4).float())
    assert batch.labels is not None, "guaranteed by Needs.labels"
    labelled = batch.labels >= 0
    targets = mixing.smoothed(batch.labels, classes, config.smoothing)
    images, mixed = _mixed(batch, targets, labelled, config)
    return Examples(images, mixed, labelled.float().repeat(len(images) // len(labelled)))


def _mixed(
    batch: Batch, targets: Float[Tensor, "b k"], mixable: Bool[Tensor, "b"], config: Labelled
) -> tuple[Float[Tensor, "n c s s"], Float[Tensor, "n k"]]:
    """Views and their targets, view after view."""
    (views,) = batch.views
    mixed = []
    for number in range(views.shape[1]):
        mix = mixing.draw(
            batch.key, Stream.MIX + number, *views.shape[-2:],
            mixup=config.mixup, cutmix=config.cutmix, p=config.mix_p, switch=config.switch_p,
        )  # fmt: skip
        mixed.append(mixing.mixed(views[:, number], targets, mix, mixable))
    images, soft_targets = (torch.cat(by_view) for by_view in zip(*mixed, strict=True))
    return images, soft_targets


def share(holds: Tensor, weights: Float[Tensor, "n *k"], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The share of the labelled examples for which `holds` is true."""
    return (holds.float() * weights).sum() / count.clamp(min=1e-9)
