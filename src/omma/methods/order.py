"""Order: are three frames of a sequence in their order? Shuffle and Learn [Misra 2016, arXiv 1603.08561].

Of five frames a < b < c < d < e, the middle one of (b, c, d) lies between the two others in time; in
(b, a, d) and (b, e, d) it does not. A network that sees each frame by itself, and a classifier of the three
features side by side, tell the two kinds apart. Half of the tuples are reversed, of both kinds.

    L = (1 - p) CE(y(b, c, d), in order) + p / 2 (CE(y(b, a, d), not) + CE(y(b, e, d), not)),
    y(i, j, k) = head([f(i), f(j), f(k)])

Costs: five frames through one encoder, of which three tuples are made.
Choose it for videos and time-lapses in which something moves or grows steadily; still ones teach nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from omma import backbones
from omma.core import protocols
from omma.core.checks import above_zero, at_least_zero, between, range_within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Colour,
    Context,
    Crop,
    Frames,
    ParamGroup,
    Recipe,
    StepOutput,
)
from omma.core.random import Stream, uniform
from omma.train import param_groups

# frames of the tuples, the first in order, the two others not [section 3.1, figure 2]
TUPLES = ((1, 2, 3), (1, 0, 3), (1, 4, 3))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Equal weights of both kinds; the paper has 75 % negatives."""

    least: float = 1.0  # distance of each of the five frames to the next, in units of the column `frame` ...
    most: float | None = 30.0  # ... the paper: b to d at most 60; none: any
    negatives: float = 0.5  # the weight of tuples that are not in order
    # of the classifier, which then reads the features' differences, too; 0: it is linear, as the paper's
    hidden: int = 0
    scale: tuple[float, float] = (0.5, 1.0)  # of the crop, which is the same for all frames
    colour: float = 0.0  # strength of jitter, the same for all frames
    crop_size: int | None = None  # pixels of the views; None: the image size

    def __post_init__(self) -> None:
        between(self, "negatives")
        at_least_zero(self, "hidden", "colour")
        above_zero(self, "least")
        range_within_one(self, "scale")


def frames(config: Config) -> Frames:
    """Five frames of one crop, flip and colour: else the middle one would be known by them."""
    return Frames(count=5, least=config.least, most=config.most, order="ascending", together=True)


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """One crop."""
    c = config.colour
    colour = Colour(brightness=0.4 * c, contrast=0.4 * c, saturation=0.2 * c, jitter_p=0.8) if c else None
    return (Crop(size=config.crop_size or image_size, scale=config.scale, colour=colour),)


def paper(image_size: int, model: str) -> Recipe:
    """Batch 128 and 100,000 steps on UCF101; AdamW in place of SGD.

    `omma pretrain IMAGES --method order --recipe paper --model timm:resnet18 --steps 100000`
    """
    config = Config(negatives=0.75)
    return Recipe(config=config, batch=128, lr=1e-3, warmup=0.05, weight_decay=5e-4, clip=None)


def small(image_size: int, model: str) -> Recipe:
    """Short clips on one machine: a hidden layer, and smaller batches, since five frames are one sample.

    `omma pretrain clips.csv --method order`. A linear classifier of three features cannot compare them, and
    one of their differences does so from the beginning.
    """
    return Recipe(
        config=Config(hidden=256, scale=(0.7, 1.0), colour=0.5), batch=32,
        lr=1e-3 if backbones.family(model).plain else 2e-3, lr_end=2e-5, warmup=0.05, weight_decay=0.05,
        clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder and classifier of three features."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        width = (6 if config.hidden else 3) * encoder.dim
        layers = [nn.Linear(width, config.hidden), nn.ReLU()] if config.hidden else []
        self.head = nn.Sequential(*layers, nn.Linear(config.hidden or width, 2))

    def logits(self, x: Float[Tensor, "b 5 c s s"], backwards: Bool[Tensor, "b"]) -> Float[Tensor, "b 3 2"]:
        """Not in order or in order, of the three `TUPLES` of each sample, reversed where `backwards`."""
        features = self.encoder(x.flatten(0, 1)).pooled.unflatten(0, x.shape[:2])
        tuples = features[:, torch.tensor(TUPLES, device=x.device)]  # [b, 3 tuples, 3 frames, d]
        tuples = torch.where(backwards[:, None, None, None], tuples.flip(2), tuples)
        if self.config.hidden:
            tuples = torch.cat([tuples, (tuples - tuples.roll(-1, dims=2)).abs()], dim=2)
        return self.head(tuples.flatten(2)).float()

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        (x,) = batch.views
        backwards = torch.from_numpy(uniform(batch.key, Stream.METHOD, 1)[:, 0] < 0.5).to(x.device)
        logits, p = self.logits(x, backwards), self.config.negatives
        target = torch.tensor([1, 0, 0], device=x.device).expand(len(x), 3)
        rows = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(-1, 3)
        loss = (rows * rows.new_tensor([1 - p, p / 2, p / 2])).sum(1).mean()
        right = (logits.detach().argmax(-1) == target).float().mean(0)
        balanced = right[0] / 2 + right[1:].mean() / 2
        return StepOutput(loss, {"balanced_accuracy": balanced})

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
