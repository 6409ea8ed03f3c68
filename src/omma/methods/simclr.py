"""SimCLR: agreement of two views against all other images of the batch [Chen 2020, arXiv 2002.05709].

Two augmented views of each image are encoded and projected; each view must pick its partner among the views
of all images, by a softmax over cosine similarities (NT-Xent). The projector is not exported.

    l(i, j) = -log exp(cos(z_i, z_j) / t) / sum_(k != i) exp(cos(z_i, z_k) / t)

Costs: two views through one encoder and next to nothing else; larger batches contrast with more images.
Choose it for small images, small data or little time: of the methods measured it learns most in ten minutes.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from omma.core import protocols
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
    StepOutput,
)
from omma.core.recipe import added
from omma.methods.shared import pair_contrast, signals
from omma.methods.shared.small_data import MUON
from omma.train import param_groups


@dataclass(frozen=True, kw_only=True)
class Config(pair_contrast.Contrast):
    """The paper's defaults, for ImageNet."""

    # of each image; more than 2 give more pairs for the same number of views [Hoffer 2019, arXiv 1901.09335]
    views: int = added(2, before=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 2:
            raise ValueError(f"method.views={self.views}: at least 2 are compared")


def needs(config: Config) -> Needs:
    """At least two images to contrast."""
    return Needs(batch=2, why_batch="each image is contrasted with the others of its batch")


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """Crops with the same augmentation, two in the paper [appendix A]."""
    return (pair_contrast.crop(config, image_size, config.views),)


def paper(image_size: int, model: str) -> Recipe:
    """Batch 4096 and 100 to 1000 epochs on ImageNet with LARS, as in its code of version 2.

    `omma pretrain IMAGES --method simclr --recipe paper --model timm:resnet50 --epochs 100`
    """
    return pair_contrast.paper(Config)


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: four small views of each image, and Muon (docs/benchmarks.md).

    `omma pretrain cifar10_25k.zip --budget 10m` on two cores: k-NN 63.2 %, with `--model vit-n/4` 60.1, the
    untrained networks' 32.6 and 27.9.
    """
    recipe = pair_contrast.small(Config, image_size, model)
    return dataclasses.replace(
        recipe, config=dataclasses.replace(recipe.config, views=4), batch=recipe.batch // 2,
        lr=recipe.lr * 0.5**0.5, least_steps=150, **MUON,
        resolution=((0.8, 0.5),) if image_size == 64 else (),  # where it was measured to pay
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder and projector."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = pair_contrast.head(config, encoder.dim)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        z = self.head(self.encoder(pair_contrast.stacked(batch.views[0])).pooled)
        return pair_contrast.output(z, self.config, self.config.views)

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.CONTRASTIVE

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
