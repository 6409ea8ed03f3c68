"""SimCLR: agreement of two views against all other images of the batch [Chen 2020, arXiv 2002.05709].

Two augmented views of each image are encoded and projected; each view must pick its partner among the views
of all images, by a softmax over cosine similarities (NT-Xent). The projector is not exported.

    l(i, j) = -log exp(cos(z_i, z_j) / t) / sum_(k != i) exp(cos(z_i, z_k) / t)

Costs: two views through one encoder and next to nothing else; larger batches contrast with more images.
Choose it for small images, small data or little time: of the methods measured it learns most in ten minutes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from omma import backbones
from omma.backbones.layers.heads import projector
from omma.core import collectives, dist, protocols
from omma.core.checks import above_zero, range_within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Colour,
    Context,
    Crop,
    HealthSignal,
    Needs,
    ParamGroup,
    Recipe,
    StepOutput,
)
from omma.losses import contrastive
from omma.methods.shared import crops, signals
from omma.train import param_groups


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's defaults, for ImageNet."""

    temperature: float = 0.1
    hidden: int = 2048
    out: int = 128
    scale: tuple[float, float] = (0.08, 1.0)
    crop_size: int | None = None  # pixels of the views; None: the image size
    colour: float = 1.0  # strength of jitter; .5 suits small images
    blur: bool = True  # off under 64 px

    def __post_init__(self) -> None:
        above_zero(self, "temperature", "hidden", "out")
        range_within_one(self, "scale")


def needs(config: Config) -> Needs:
    """At least two images to contrast."""
    return Needs(batch=2, why_batch="each image is contrasted with the others of its batch")


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """Two crops with the same augmentation [appendix A]."""
    c = config.colour
    colour = Colour(
        brightness=0.8 * c, contrast=0.8 * c, saturation=0.8 * c, hue=0.2 * c, jitter_p=0.8, grey_p=0.2,
        blur_p=0.5 if config.blur else 0.0,
    )  # fmt: skip
    return (Crop(count=2, size=config.crop_size or image_size, scale=config.scale, colour=colour),)


def paper(image_size: int, model: str) -> Recipe:
    """Batch 4096 and 100 to 1000 epochs on ImageNet; AdamW in place of LARS.

    `omma pretrain IMAGES --method simclr --recipe paper --model vit-s/16 --epochs 100`
    """
    return Recipe(config=Config(), batch=4096, lr=1e-3, warmup=0.1, weight_decay=0.1, clip=None)


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine; views are smaller than the image size, which is faster.

    `omma pretrain cifar10_25k.zip --budget 10m` on two cores: k-NN 63.6 %, with `--model vit-n/4` 59.6, the
    untrained networks' 32.6 and 27.9 (docs/benchmarks.md). A plain ViT makes more tokens of a view than a
    hybrid, and gains from smaller views.
    """
    tiny, plain = image_size < 64, backbones.family(model).plain
    config = Config(
        temperature=0.1, hidden=512, scale=(0.2, 1.0), colour=0.25 if tiny else 0.5, blur=not tiny,
        crop_size=crops.smaller(image_size, plain),
    )  # fmt: skip
    return Recipe(
        config=config, batch=128, lr=1e-3 if plain else 2e-3, lr_end=2e-5, warmup=0.05, weight_decay=0.05,
        clip=None, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder and projector."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = projector([encoder.dim, config.hidden, config.out])

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        (pairs,) = batch.views
        b = len(pairs)
        z = self.head(self.encoder(torch.cat([pairs[:, 0], pairs[:, 1]])).pooled)
        first, second = z[:b], z[b:]
        everyone = collectives.gather(first), collectives.gather(second)
        loss = contrastive.ntxent(first, second, self.config.temperature, everyone, offset=dist.rank() * b)
        metrics = {
            "alignment": contrastive.alignment(first, second).detach(),
            "uniformity": contrastive.uniformity(first.detach()),
        }
        return StepOutput(loss, metrics)

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.CONTRASTIVE

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
