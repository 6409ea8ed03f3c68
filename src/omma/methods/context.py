"""Context: where does one patch of an image lie, seen from another? [Doersch 2015, arXiv 1505.05192].

Nine patches are cut from each image in a grid with gaps, each moved by a jitter of its own. A classifier of two
patches' features says at which of the eight places around the first the second lies; to know, the encoder must
know what the patches show. What would tell the place without that is taken away: edges that continue (gap and
jitter), and colours that a lens shifts towards the border (`colour`).

    L = - log p(place | f(x_1), f(x_2)),  places:  0 1 2
                                                   3   4
                                                   5 6 7

The encoder is shown patches, and later whole images: a transformer's positions are resampled to both. A
batch must hold several images, since batch norm over the grid of one would tell its patches from each other.

Not taken away: a JPEG's blocks of 8 px, and pixels resampled where it is decoded at reduced size, are phases
that repeat over the image. The random crop resamples them; at full size choose a jitter of 8 px or more.

Costs: nine small images through the encoder in place of one view. Choose it to see what structure alone can
teach: of the methods here that compare views, all learn more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
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
    Key,
    Needs,
    ParamGroup,
    Recipe,
    StepOutput,
)
from omma.core.random import Stream, fill, uniform
from omma.train import param_groups

PLACES = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # rows down, columns right
COLOURS = ("drop", "project", "keep")
PAIRS = ("all", "centre")
GREEN_MAGENTA = (-1.0, 2.0, -1.0)  # the axis along which lenses shift colours [section 3.1]


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

    @property
    def side(self) -> int:
        """Pixels of the grid, along a side."""
        return 3 * self.patch + 2 * self.gap + 2 * self.jitter


def needs(config: Config) -> Needs:
    """Several images a batch."""
    return Needs(batch=2, why_batch="batch norm over the patches of one image would tell their places")


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """One crop that holds the grid: not flipped (it need not be), and with its colours."""
    return (Crop(count=1, size=config.side, scale=config.scale, flip_p=0.0),)


def paper(image_size: int, model: str) -> Recipe:
    """Patches of 96 px with a gap of 48, from a crop of 398 px; AdamW in place of SGD.

    `omma pretrain PHOTOS --method context --recipe paper --model timm:resnet50 --epochs 100`
    """
    return Recipe(config=Config(), batch=256, lr=1e-3, warmup=0.05, weight_decay=0.05, clip=3.0)


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: 16 px, gap 6, jitter 2 at 64 px; 48, 24 and 6 at 192 px."""
    patch = max(4, image_size // 16 * 4)
    config = Config(
        patch=patch, gap=patch * 3 // 8 if image_size < 96 else patch // 2, jitter=max(1, patch // 8),
    )  # fmt: skip
    plain = backbones.family(model).plain
    return Recipe(
        config=config, batch=128, lr=1e-3 if plain else 2e-3, lr_end=2e-5, warmup=0.05, weight_decay=0.05,
        clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


def neighbours(pairs: str) -> Int[np.ndarray, "3 p"]:
    """First patch, second patch and its place; patches are numbered row by row, the centre is 4."""
    found = []
    for first in range(9) if pairs == "all" else (4,):
        for place, (down, right) in enumerate(PLACES):
            row, column = first // 3 + down, first % 3 + right
            if 0 <= row < 3 and 0 <= column < 3:
                found.append((first, 3 * row + column, place))
    return np.array(found).T


def cut(images: Float[Tensor, "b c s s"], key: Key, config: Config) -> Float[Tensor, "b 9 c p p"]:
    """The patches of the grid, each moved by its own jitter in [-j, j] down and right."""
    b, p = len(images), config.patch
    drawn = uniform(key, Stream.METHOD, 18).reshape(b, 2, 9)
    moves = np.floor(drawn * (2 * config.jitter + 1)).astype(np.int64)
    grid = np.stack([np.arange(9) // 3, np.arange(9) % 3]) * (p + config.gap)
    corners = torch.from_numpy(grid + moves).to(images.device)  # [b, 2, 9]
    rows, columns = (corners[:, axis, :, None] + torch.arange(p, device=images.device) for axis in (0, 1))
    each = torch.arange(b, device=images.device)[:, None, None, None]
    return images.permute(0, 2, 3, 1)[each, rows[..., None], columns[:, :, None]].permute(0, 1, 4, 2, 3)


def without_colour(patches: Float[Tensor, "b 9 c p p"], key: Key, colour: str) -> Float[Tensor, "b 9 c p p"]:
    """drop: one channel less its mean, and noise of a hundredth of its deviation in the others; the patch is
    then scaled to a root mean square of 1. project: the green-magenta axis is taken out. [section 3.1]
    """
    if colour == "keep":
        return patches
    b, _, c, p, _ = patches.shape
    if colour == "project":
        axis = F.normalize(patches.new_tensor(GREEN_MAGENTA), dim=0)
        return patches - axis[:, None, None] * (patches * axis[:, None, None]).sum(2, keepdim=True)
    chosen = torch.from_numpy(np.floor(uniform(key, Stream.METHOD + 1, 9) * c).astype(np.int64))
    kept = F.one_hot(chosen.to(patches.device), c)[..., None, None].to(patches.dtype)
    own = (patches * kept).sum(2, keepdim=True)
    own = own - own.mean((3, 4), keepdim=True)
    deviation = own.square().mean((3, 4), keepdim=True).sqrt()
    noise = fill(key, Stream.METHOD + 2, (9, c, p, p), patches.device, torch.Tensor.normal_).to(patches.dtype)
    noise = noise * deviation / 100
    patches = own * kept + noise * (1 - kept)
    return patches / (patches.square().mean((2, 3, 4), keepdim=True).sqrt() + 1e-3)


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
        self.register_buffer("pairs", torch.from_numpy(neighbours(config.pairs)), persistent=False)

    def logits(self, batch: Batch, pairs: Int[Tensor, "3 p"]) -> Float[Tensor, "bp 8"]:
        """Of these pairs of each image, image by image."""
        (images,) = batch.views
        patches = without_colour(cut(images[:, 0], batch.key, self.config), batch.key, self.config.colour)
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
