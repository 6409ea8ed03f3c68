"""Triplet: images of one class nearer than those of others, by a margin [Schroff 2015, arXiv 1503.03832].

Two views of each labelled image are embedded as unit vectors. Of each pair of one class in the batch, the
distance is to be smaller than that to a negative by a margin. The negative is the nearest of those that are
farther than the positive ("semi-hard" within the margin); where none is, the farthest: hardest negatives
collapse everything into one point, where the loss stands at the margin.

    L = mean_(a, p) max(0, |f(a) - f(p)|^2 - |f(a) - f(n)|^2 + m)

Costs: two views through one encoder and next to nothing else; a larger batch has better negatives.
Choose it to tell individuals or products apart by distance, with many classes of few images each; with few
classes supervised learns more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from omma import backbones
from omma.backbones.layers.heads import require_two_classes
from omma.core import collectives, dist, protocols
from omma.core.checks import above_zero, range_within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
    HealthSignal,
    Needs,
    ParamGroup,
    RandAugment,
    Recipe,
    StepOutput,
)
from omma.losses import contrastive, triplet
from omma.methods.shared import crops, signals
from omma.train import param_groups


@dataclass(frozen=True, kw_only=True)
class Config:
    """FaceNet's; of the views, which it does not augment, those of supervised learning."""

    margin: float = 0.2  # of squared distances, which lie in [0, 4]
    out: int = 128  # width of the embedding
    scale: tuple[float, float] = (0.4, 1.0)
    crop_size: int | None = None  # pixels of the views; None: the image size
    operations: int = 1  # of RandAugment; 0: off
    magnitude: float = 5.0  # of 10

    def __post_init__(self) -> None:
        above_zero(self, "margin", "out")
        range_within_one(self, "scale")
        if self.operations < 0:
            raise ValueError(f"method.operations={self.operations}: must be at least 0 (off)")
        if not self.margin < 4:
            raise ValueError(f"method.margin={self.margin:g}: squared distances are at most 4; .2 is usual")


def needs(config: Config) -> Needs:
    """Labels, and images of two classes in a batch."""
    return Needs(labels=True, batch=2, why_batch="each image is compared with others of its batch")


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """Two crops of each image, so that each has a positive."""
    c = config
    augment = RandAugment(count=c.operations, magnitude=c.magnitude) if c.operations else None
    return (Crop(count=2, size=c.crop_size or image_size, scale=c.scale, augment=augment),)


def paper(image_size: int, model: str) -> Recipe:
    """Batch 1,800 on 200 million faces of 8 million people; AdamW in place of AdaGrad.

    `omma pretrain FACES --method triplet --recipe paper --model vit-s/16 --epochs 100`
    """
    return Recipe(config=Config(), batch=1800, lr=1e-3, warmup=0.05, weight_decay=0.05, clip=None)


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine; smaller views are faster."""
    plain = backbones.family(model).plain
    return Recipe(
        config=Config(crop_size=crops.smaller(image_size)), batch=128, lr=1e-3 if plain else 2e-3,
        lr_end=2e-5, warmup=0.05, weight_decay=0.05, clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder and a linear embedding."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        require_two_classes(context.classes)
        self.config = config
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, config.out)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        (pairs,) = batch.views
        assert batch.labels is not None, "guaranteed by `needs`"
        z = self.head(self.encoder(torch.cat([pairs[:, 0], pairs[:, 1]])).pooled).float()
        labels = batch.labels.repeat(2)
        found = triplet.semi_hard(
            z, labels, collectives.gather(z), collectives.gather(labels), self.config.margin,
            offset=dist.rank() * len(z),
        )  # fmt: skip
        count = collectives.mean(found.pairs.sum().float()).clamp(min=1)
        metrics = {
            "uniformity": contrastive.uniformity(z.detach()),
            "positive_distance": _mean(found.positive, found.pairs, count),
            "negative_distance": _mean(found.negative, found.pairs, count),
            "active": _mean((found.loss > 0).float(), found.pairs, count),  # share of pairs that teach
        }
        return StepOutput(found.loss.sum() / count, metrics)

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.TRIPLET

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")


def _mean(values: torch.Tensor, pairs: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return (values.detach() * pairs).sum() / count
