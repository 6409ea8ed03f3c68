"""Context: where does one patch of an image lie, seen from another? [Doersch 2015, arXiv 1505.05192].

Nine patches are cut from each image in a grid with gaps, each moved by a jitter of its own. A classifier of
two patches' features says at which of the eight places around the first the second lies; to know, the encoder
must know what the patches show. What would tell the place without that is taken away: edges that continue
(gap and jitter), and colours that a lens shifts towards the border (`colour`).

    L = - log p(place | f(x_1), f(x_2)),  places:  0 1 2
                                                   3   4
                                                   5 6 7

The encoder is shown patches, and later whole images: a transformer's positions are resampled to both. A
batch must hold several images, since batch norm over the grid of one would tell its patches from each other.

Not taken away: a JPEG's blocks of 8 px, and pixels resampled where it is decoded at reduced size, are phases
that repeat over the image. The random crop resamples them; at full size choose a jitter of 8 px or more.

Costs: nine small images through the encoder in place of one view.
Choose it to see what structure alone can teach; to learn most, choose a method that compares views.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omma import backbones
from omma.backbones.layers.heads import projector
from omma.core import protocols
from omma.core.checks import above_zero, at_least_zero, one_of, range_within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
    Needs,
    ParamGroup,
    Recipe,
    StepOutput,
)
from omma.methods.shared import patch_grid
from omma.methods.shared.patch_grid import COLOURS, PLACES
from omma.train import param_groups

PAIRS = ("all", "centre")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's, for photos of about 500 px."""

    patch: int = 96  # pixels along a side
    gap: int = 48  # pixels between neighbours
    jitter: int = 7  # pixels that each patch moves at most, each way
    colour: str = "drop"  # two channels of three, or "project" onto two colours, or "keep" all
    pairs: str = "all"  # neighbours of the grid in both directions, or those of its "centre"
    hidden: int = 512  # width of the classifier of pairs
    scale: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        above_zero(self, "patch", "hidden")
        at_least_zero(self, "gap", "jitter")
        one_of("method.colour", self.colour, COLOURS)
        one_of("method.pairs", self.pairs, PAIRS)
        range_within_one(self, "scale")


def needs(config: Config) -> Needs:
    """Several images a batch."""
    why = "batch norm over the patches of one image would tell their places"
    return Needs(batch=2, why_batch=why, fixed_views=True)


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """One crop that holds the grid: not flipped (it need not be), and with its colours."""
    side = patch_grid.side(config.patch, config.gap, config.jitter)
    return (Crop(count=1, size=side, scale=config.scale, flip_p=0.0),)


def paper(image_size: int, model: str) -> Recipe:
    """Patches of 96 px with a gap of 48, from a crop of 398 px; AdamW in place of SGD.

    `omma pretrain PHOTOS --method context --recipe paper --model timm:resnet50 --epochs 100`
    """
    return Recipe(config=Config(), batch=256, lr=1e-3, warmup=0.05, weight_decay=0.05, clip=3.0)


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: 16 px, gap 6, jitter 2 at 64 px; 48, 24 and 6 at 192 px."""
    whole = 4 if image_size < 96 else 8 if image_size < 128 else 16  # whole patches of a transformer
    patch = max(whole, image_size // 4 // whole * whole)
    gap = patch * 3 // 8 if image_size < 96 else patch // 2
    config = Config(patch=patch, gap=gap, jitter=max(1, patch // 8))
    plain = backbones.family(model).plain
    return Recipe(
        config=config, batch=128, lr=1e-3 if plain else 2e-3, lr_end=2e-5, warmup=0.05, weight_decay=0.05,
        clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder and classifier of pairs."""

    pairs: Tensor

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        if config.colour == "project" and encoder.channels != 3:
            raise ValueError("method.colour=project: needs three colours; choose drop or keep")
        self.config = config
        self.encoder = encoder
        self.head = projector([2 * encoder.dim, config.hidden, len(PLACES)])
        pairs = torch.from_numpy(patch_grid.neighbours(config.pairs == "centre"))
        self.register_buffer("pairs", pairs, persistent=False)

    def logits(self, batch: Batch, pairs: Int[Tensor, "3 p"]) -> Float[Tensor, "bp 8"]:
        """Of these pairs of each image, image by image."""
        (images,), c = batch.views, self.config
        patches = patch_grid.cut(images[:, 0], batch.key, c.patch, c.gap, c.jitter)
        patches = patch_grid.without_colour(patches, batch.key, c.colour)
        features = self.encoder(patches.flatten(0, 1)).pooled.unflatten(0, (len(images), 9))
        both = torch.cat([features[:, pairs[0]], features[:, pairs[1]]], dim=-1)
        return self.head(both.flatten(0, 1)).float()

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        logits = self.logits(batch, self.pairs)
        places = self.pairs[2].repeat(len(batch.views[0]))
        accuracy = (logits.detach().argmax(1) == places).float().mean()
        return StepOutput(F.cross_entropy(logits, places), {"accuracy": accuracy})

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
