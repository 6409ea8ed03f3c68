"""LeJEPA: views predict their mean, with Gaussian embeddings [Balestriero 2025, arXiv 2511.08544].

All views of an image should lie at the mean of its global views. A statistical test prevents collapse: along
random directions, a batch's embeddings must look like draws from a standard normal distribution (Epps and
Pulley's test on characteristic functions, "SIGReg"). No teacher, no centre, no stop-gradient.

    L = (1 - w) mean_v |z_v - mean_globals z|^2 / d + w mean_a n int |phi_a(t) - g(t)|^2 g(t) dt
    g(t) = exp(-t^2 / 2)

Costs: all views through one encoder with gradients; the test is linear in batch and width.
Choose it for small batches and small data, where methods with a teacher need tuning: it has one weight.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from omma import backbones
from omma.backbones.layers.heads import projector
from omma.core import collectives, protocols
from omma.core.checks import above_zero, at_least_zero, range_within_one, within_one
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
from omma.core.random import derive
from omma.methods.shared import crops
from omma.train import param_groups

MAX_T = 3.0  # characteristic functions are compared up to this t


@dataclass(frozen=True, kw_only=True)
class Config:
    """The defaults of the paper's released code, for ImageNet."""

    weight: float = 0.05  # of SIGReg; the trade-off
    directions: int = 1024
    knots: int = 17  # values of t at which they are compared
    hidden: int = 2048
    out: int = 64
    global_crops: int = 2
    local_crops: int = 6
    global_scale: tuple[float, float] = (0.3, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.3)
    crop_size: int | None = None  # pixels of the global crops; None: the image size
    local_size: int | None = None  # pixels; None: 96/224 of the image size (98 suits patches of 14 px)
    colour: float = 1.0  # strength of jitter; .5 suits small images
    blur: bool = True  # off under 64 px

    def __post_init__(self) -> None:
        above_zero(self, "directions", "hidden", "out", "global_crops")
        within_one(self, "weight")
        range_within_one(self, "global_scale", "local_scale")
        at_least_zero(self, "local_crops")
        if self.global_crops + self.local_crops < 2:
            raise ValueError(
                f"method.global_crops={self.global_crops} without local crops: at least 2 views are compared"
            )
        if self.knots < 2:
            raise ValueError(f"method.knots={self.knots}: at least 2 are needed, 17 in the paper")


def needs(config: Config) -> Needs:
    """A batch of at least two, whose distribution is tested."""
    return Needs(batch=2, why_batch="the distribution of a batch's embeddings is tested")


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """Global and local crops with the same colour augmentation."""
    size = config.crop_size or image_size
    colour = crops.pair_colour(config.colour, 0.5 if config.blur else 0.0, 0.2)
    kinds = [Crop(count=config.global_crops, size=size, scale=config.global_scale, colour=colour)]
    if config.local_crops:
        local = config.local_size or crops.small_side(image_size)
        kinds.append(Crop(count=config.local_crops, size=local, scale=config.local_scale, colour=colour))
    return tuple(kinds)


def paper(image_size: int, model: str) -> Recipe:
    """ViT-L/14 on ImageNet: batch 512, 100 epochs.

    `omma pretrain IMAGES --method lejepa --recipe paper --model vit-l/14 --epochs 100`
    """
    return Recipe(
        config=Config(local_size=crops.papers_local_size(image_size, model)), batch=512, lr=5e-4,
        lr_end=5e-7, warmup=0.1, weight_decay=0.05, decayed=("token", "position", "table", "vector"),
        clip=None, drop_path=0.1,
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: four global views, a narrow projection.

    `omma pretrain cifar10_25k.zip --method lejepa --model vit-n/4 --budget 10m` on two cores: k-NN 55.6 %,
    the untrained network's 27.9 (docs/benchmarks.md).
    """
    tiny, plain = image_size < 64, backbones.family(model).plain
    config = Config(
        weight=0.02, directions=256, hidden=512, out=16, global_crops=4, local_crops=0,
        global_scale=(0.2, 1.0), colour=0.5 if tiny else 1.0, blur=not tiny,
        crop_size=crops.smaller(image_size, plain),
    )  # fmt: skip
    return Recipe(
        config=config, batch=128, lr=1e-3 if plain else 2e-3, lr_end=2e-6, warmup=0.05, weight_decay=0.05,
        clip=None, encoder={"pool": "mean"},
    )  # fmt: skip


def sigreg(z: Float[Tensor, "v n d"], directions: Float[Tensor, "d a"], knots: int = 17) -> Float[Tensor, ""]:
    """Epps and Pulley's statistic of each view's rows along each direction, averaged [eq. of section 4.2].

    n times the integral over t in [-3, 3] of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the trapezoidal
    rule on [0, 3], doubled. phi is the rows' empirical characteristic function.
    """
    t = torch.linspace(0, MAX_T, knots, device=z.device)
    normal = (-t.square() / 2).exp()
    width = MAX_T / (knots - 1)
    weights = torch.full_like(t, 2 * width)
    weights[[0, -1]] = width
    angles = (z.float() @ directions)[..., None] * t  # [v, n, a, t]
    error = (angles.cos().mean(1) - normal).square() + angles.sin().mean(1).square()
    return (error @ (weights * normal)).mean() * z.shape[1]


class Method(protocols.Method):
    """Encoder and projector."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = projector([encoder.dim, config.hidden, config.hidden, config.out])

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c = self.config
        crops = [view.transpose(0, 1).flatten(0, 1) for view in batch.views]
        tokens = [(self.encoder.tokenize(x), self.encoder.grid(*x.shape[-2:])) for x in crops]
        pooled = torch.cat([f.pooled for f in self.encoder.encode_many(tokens)])
        z = self.head(pooled).float().unflatten(0, (-1, len(batch.views[0])))  # [v, b, d]
        spread = (z - z[: c.global_crops].mean(0)).square().mean()
        # the same directions in all processes, new ones at each step
        generator = torch.Generator().manual_seed(derive(batch.key.seed, clock.step))
        directions = torch.randn(c.out, c.directions, generator=generator).to(z.device)
        everyone = collectives.gather(z.transpose(0, 1).contiguous()).transpose(0, 1)
        test = sigreg(everyone, directions / directions.norm(dim=0), c.knots)
        loss = (1 - c.weight) * spread + c.weight * test
        with torch.no_grad():  # the target's deviations are 1
            lacking = (1 - everyone.flatten(0, 1).std(0, correction=0).mean()).clamp(min=0)
        metrics = {"prediction": spread.detach(), "sigreg": test.detach(), "lacking_deviation": lacking}
        return StepOutput(loss, metrics)

    def health_signals(self) -> Sequence[HealthSignal]:
        remedy = "Raise --method.weight, or lower --lr"
        return (
            HealthSignal(
                kind="verdict", metric="lacking_deviation", limit=0.9, remedy=remedy,
                text="projections hardly vary over the images ({value:.2f} below a deviation of 1)",
            ),
            HealthSignal(kind="remedy", metric="lacking_deviation", limit=-math.inf, remedy=remedy),
        )  # fmt: skip

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
