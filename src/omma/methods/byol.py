"""BYOL: predict what a slow average of oneself says of another view [Grill 2020, arXiv 2006.07733].

An online network of encoder, projector and predictor sees one view of an image, a target network of encoder
and projector the other. The online network predicts the target's projection; the target is the moving average
of the online network and takes no gradient. No image is compared with another: there are no negatives.

    L = 2 - 2 cos(q(z_1), t_2) + 2 - 2 cos(q(z_2), t_1),   z_i: online projections, t_i: the target's

Costs: two views through the encoder and, without gradients, through its average: a third more
multiply-adds than SimCLR.
Exports: the trained `encoder` [section 3.1].
Choose it for batches that are too small for contrastive methods, where an average's memory is no concern.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from omma import backbones
from omma.backbones.layers.heads import projector
from omma.core import collectives, protocols
from omma.core.checks import above_zero, range_within_one, within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
    HealthSignal,
    Needs,
    ParamGroup,
    Recipe,
    Schedule,
    StepOutput,
)
from omma.core.recipe import added
from omma.losses import contrastive
from omma.methods.shared import crops
from omma.train import ema, param_groups
from omma.train.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class Config(crops.Photometric):
    """The paper's defaults, for ResNet-50 on ImageNet."""

    momentum: float = 0.996  # of the target, rising to 1 by a cosine
    hidden: int = 4096  # width of projector and predictor
    out: int = 256
    scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area that is cropped
    crop_size: int | None = None  # pixels of the views; None: those that the network will see
    colour: float = 1.0  # strength of jitter; .5 suits small images
    blur: bool = True  # off under 64 px

    blur_as: Literal["pillow", "gaussian", "taps9", "zeros"] = added("zeros", before="gaussian")

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "hidden", "out")
        within_one(self, "momentum")
        range_within_one(self, "scale")


def needs(config: Config) -> Needs:
    """Two images: with one, batch norm makes every projection the same."""
    return Needs(batch=2, why_batch="batch norms take their statistics from the images of a batch")


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """Two crops with unlike blur and solarisation [appendix B]."""
    return crops.pair(config.crop_size or image_size, config.scale, config.colour, config.blur, config)


def paper(image_size: int, model: str) -> Recipe:
    """ResNet-50 on ImageNet: batch 4096, 1000 epochs, 10 of them warm-up, with LARS, as in its code.

    `omma pretrain IMAGES --method byol --recipe paper --model timm:resnet50 --epochs 1000`
    """
    return Recipe(
        config=Config(), batch=4096, lr=0.2 * 4096 / 256, rate_by_batch="linear", lr_end=0.0, warmup=0.01,
        warmup_epochs=10, schedule=Schedule(ramp="open"), optimizer="lars", momentum_of="gradients",
        weight_decay=1.5e-6, decayed=("token", "position", "table"), clip=None,
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: narrow heads, a quicker target, milder and smaller views.

    `omma pretrain cifar10_25k.zip --method byol --model vitc-15mf --budget 3m` on one busy core (1,585
    steps): k-NN 42.0 %, the untrained network's 32.5; 40.9 with momentum .9 (840 steps).
    """
    tiny, plain = image_size < 64, backbones.traits(model).plain
    config = Config(
        momentum=0.99, hidden=512, out=128, scale=(0.2, 1.0), colour=0.5 if tiny else 1.0, blur=not tiny,
        crop_size=crops.smaller(image_size, plain), **crops.SMALL,
    )  # fmt: skip
    return Recipe(
        config=config, batch=128, lr=1e-3 if plain else 2e-3, lr_end=2e-5, warmup=0.05, weight_decay=0.05,
        clip=None, encoder={"pool": "mean"},
    )  # fmt: skip


def symmetrised(
    predicted: Sequence[Float[Tensor, "b d"]], target: Sequence[Float[Tensor, "b d"]]
) -> Float[Tensor, ""]:
    """2 - 2 cos of each view's prediction and the other's target, mean over images [eq. 2]; in [0, 8]."""
    one = contrastive.alignment(predicted[0], target[1])
    return one + contrastive.alignment(predicted[1], target[0])


class Method(protocols.Method):
    """Encoder, projector and predictor, and the target: averages of the first two."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = projector([encoder.dim, config.hidden, config.out])
        self.predictor = projector([config.out, config.hidden, config.out])
        self.target = ema.teacher_of(encoder)
        self.target_head = ema.teacher_of(self.head)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        # view by view: batch norms take their statistics from one of them, as in the paper's code
        images = [view[:, 0] for view in batch.views]
        predicted = [self.predictor(self.head(self.encoder(x).pooled)) for x in images]
        with torch.no_grad():
            target = [self.target_head(self.target(x).pooled) for x in images]
            spread = contrastive.uniformity(collectives.gather(target[0]))
        return StepOutput(symmetrised(predicted, target), {"uniformity": spread})

    @torch.no_grad()
    def after_step(self, clock: Clock, carries: Sequence[None]) -> None:
        momentum = cosine(self.config.momentum, 1.0, clock.progress)  # [section 3.3]
        ema.update(self.target, self.encoder, momentum)
        ema.update(self.target_head, self.head, momentum)

    def health_signals(self) -> Sequence[HealthSignal]:
        remedy = "Raise --method.momentum, or lower --lr"
        return (
            HealthSignal(
                kind="verdict", metric="uniformity", limit=-0.1, remedy=remedy,
                text="projections are nearly equal (uniformity {value:.2f}, 0 is collapse)",
            ),
            HealthSignal(kind="remedy", metric="uniformity", limit=-math.inf, remedy=remedy),
        )  # fmt: skip

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
        yield from param_groups.standard(self.predictor, "predictor")
