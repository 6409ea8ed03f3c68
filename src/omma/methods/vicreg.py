"""VICReg: variance, invariance and covariance of two views [Bardes 2021, arXiv 2105.04906].

Two views of each image are encoded and projected, and must agree. Two terms of each view's batch prevent
collapse without negatives, teacher or normalisation: every dimension must keep a standard deviation of 1
over the images, and different dimensions must be uncorrelated.

    L = 25 s(z, z') + 25 [v(z) + v(z')] + [c(z) + c(z')],   s = mean (z_ij - z'_ij)^2,
    v = mean_j max(0, 1 - sqrt(Var z_j + 1e-4)),   c = 1/d sum_(i != j) Cov(z)_ij^2

Costs: two views through one encoder, and two d x d matrices of the projection's width d.
Choose it for batches that are too small for contrastive methods, or views of unlike kinds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma import backbones
from omma.backbones.layers.heads import projector
from omma.core import collectives, protocols
from omma.core.checks import above_zero, at_least_zero, range_within_one
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
from omma.methods.shared import crops
from omma.train import param_groups

EPSILON = 1e-4  # keeps the root's slope finite where a dimension does not vary


@dataclass(frozen=True, kw_only=True)
class Config(crops.Photometric):
    """The paper's defaults, for ResNet-50 on ImageNet."""

    invariance: float = 25.0  # weights of the three terms
    variance: float = 25.0
    covariance: float = 1.0
    deviation: float = 1.0  # gamma, the least standard deviation of a dimension that costs nothing
    hidden: int = 8192
    out: int = 8192
    scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area that is cropped
    crop_size: int | None = None  # pixels of the views; None: those that the network will see
    colour: float = 1.0  # strength of jitter; .5 suits small images
    blur: bool = True  # off under 64 px

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero(self, "invariance", "variance", "covariance")
        above_zero(self, "deviation", "hidden", "out")
        range_within_one(self, "scale")


def needs(config: Config) -> Needs:
    """Two images: one alone has neither variance nor covariance."""
    return Needs(batch=2, why_batch="variances are measured over the images of a batch")


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """BYOL's colours, with the mean of both its crops' blur and solarisation for each view [appendix C.1]."""
    colour = crops.pair_colour(config.colour, 0.5 if config.blur else 0.0, 0.1, config)
    return (Crop(count=2, size=config.crop_size or image_size, scale=config.scale, colour=colour),)


def paper(image_size: int, model: str) -> Recipe:
    """ResNet-50 on ImageNet: batch 2048, 1000 epochs, 10 of them warm-up, with LARS, as in its code.

    `omma pretrain IMAGES --method vicreg --recipe paper --model timm:resnet50 --epochs 1000`
    """
    lr = 0.2 * 2048 / 256
    return Recipe(
        config=Config(variance=12.5), batch=2048, lr=lr, rate_by_batch="linear", lr_end=lr / 1000,
        warmup=0.01, warmup_epochs=10, schedule=Schedule(ramp="open", scaled=True), optimizer="lars",
        momentum_of="gradients", weight_decay=1e-6, decayed=("token", "position", "table"), clip=None,
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: a narrow projection, milder and smaller views.

    `omma pretrain cifar10_25k.zip --method vicreg --model vitc-15mf --budget 3m` on one busy core (1,284
    steps): k-NN 51.5 %, the untrained network's 32.5.
    """
    tiny, plain = image_size < 64, backbones.traits(model).plain
    config = Config(
        hidden=512, out=512, scale=(0.2, 1.0), colour=0.5 if tiny else 1.0, blur=not tiny,
        crop_size=crops.smaller(image_size, plain), **crops.SMALL,
    )  # fmt: skip
    return Recipe(
        config=config, batch=128, lr=1e-3 if plain else 2e-3, lr_end=2e-5, warmup=0.05, weight_decay=0.05,
        clip=None, encoder={"pool": "mean"},
    )  # fmt: skip


def variance(z: Float[Tensor, "n d"], deviation: float = 1.0) -> Float[Tensor, ""]:
    """Mean over dimensions of how far the standard deviation is below `deviation` [eq. 1 and 2].

    .99 if z is constant and `deviation` 1; 0 if every dimension varies enough.
    """
    squares = (z - z.mean(0)).square().sum(0) / max(len(z) - 1, 1)
    return F.relu(deviation - (squares + EPSILON).sqrt()).mean()


def covariance(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Sum of the squared covariances of different dimensions, over d [eq. 3 and 4]; 0 if uncorrelated."""
    z = z - z.mean(0)
    c = z.T @ z / max(len(z) - 1, 1)
    return (c - torch.diag(c.diagonal())).square().sum() / z.shape[1]


class Method(protocols.Method):
    """Encoder and projector (the paper's expander)."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = projector([encoder.dim, config.hidden, config.hidden, config.out])
        # every term is blind to a constant: a bias would have no gradient but rounding errors
        self.head[-1] = nn.Linear(config.hidden, config.out, bias=False)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c, views = self.config, batch.views[0].unbind(1)
        # view by view: batch norms take their statistics from one of them [algorithm 1]
        one, two = (collectives.gather(self.head(self.encoder(x).pooled).float()) for x in views)
        # the mean over dimensions is algorithm 1's (eq. 5 has their sum); the authors' code halves v, and so
        # does `paper`
        terms = {
            "invariance": F.mse_loss(one, two),
            "variance": variance(one, c.deviation) + variance(two, c.deviation),
            "covariance": covariance(one) + covariance(two),
        }
        loss = sum((getattr(c, name) * term for name, term in terms.items()), one.new_zeros(()))
        means = {"variance": terms["variance"] / (2 * c.deviation)}
        return StepOutput(loss, {name: value.detach() for name, value in (terms | means).items()})

    def health_signals(self) -> Sequence[HealthSignal]:
        return (
            HealthSignal(
                kind="verdict", metric="variance", limit=0.9,
                remedy="Raise --method.variance, or lower --lr",
                text="projections hardly vary over the images (hinge {value:.2f}, 1 is collapse)",
            ),
            HealthSignal(
                kind="remedy", metric="variance", limit=-math.inf,
                remedy="Raise --method.variance or --method.covariance, or lower --lr",
            ),
        )  # fmt: skip

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
