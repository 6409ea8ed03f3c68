"""Egomotion: features that a camera's motion moves predictably [Jayaraman 2015, arXiv 1505.02206].

Motions between the poses of two frames are clustered into patterns (left turn, right turn, forward). Each has
a matrix that must take the features of the first frame to those of the second, and must not where the motion
is another's, or all features would shrink to 0. The modes `drlim` and `temporal` ask for slow features, close
for frames of a sequence and apart for others, instead; `equiv+drlim` asks for both.

    L = mean_ij |M_p z_i - z_j| + mean_(g != p) max(delta - |M_g z_i - z_j|, 0),  p = p_ij

Costs: two frames through one encoder. `equiv` alone may take identity from the features: check retrieval.
Choose it for pictures with known poses: robots, turntables, drives, satellites.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from omma import backbones
from omma.core import collectives, protocols
from omma.core.checks import above_zero, at_least_zero, one_of, range_within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
    Field,
    Frames,
    HealthSignal,
    Needs,
    ParamGroup,
    Recipe,
    StepOutput,
)
from omma.losses import motion
from omma.methods.shared import motions, signals, tracks
from omma.ops.batch_norm import BatchNorm
from omma.train import param_groups

MODES = {"equiv": 0, "equiv+drlim": 2, "drlim": 2, "temporal": 1}  # the norm of slowness


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's defaults, for KITTI at 10 frames a second."""

    mode: str = "equiv"  # or equiv+drlim, drlim (Euclidean), temporal (L1)
    pose: str = "pose"  # column(s) of 12 numbers (3 x 4 camera-to-world, by rows), of 1 (an angle), of others
    period: float = 360.0  # a full turn of a pose of 1 number; 0: it is no angle
    patterns: int = 6  # clusters of motions, at most
    least: float = 1.0  # distance of the two frames, in units of the column `frame` ...
    most: float | None = 10.0  # ... none: any
    order: Literal["any", "ascending"] = "any"  # either frame may be the first; or ascending
    out: int = 64
    margin: float = 1.0
    slowness: float = 1.0  # weight of drlim in equiv+drlim
    scale: tuple[float, float] = (1.0, 1.0)  # of the crop, which is the same for both frames
    crop_size: int | None = None  # pixels of the views; None: the image size

    def __post_init__(self) -> None:
        one_of("method.mode", self.mode, MODES)
        one_of("method.order", self.order, ("any", "ascending"))
        above_zero(self, "patterns", "out", "margin", "least")
        at_least_zero(self, "period", "slowness")
        range_within_one(self, "scale")


def needs(config: Config) -> Needs:
    """A pose for each image; the images' numbers, by which their sequences are told apart."""
    return Needs(fields=(_field(config),), numbered=True)


def _field(config: Config) -> Field:
    columns = tuple(name.strip() for name in config.pose.split(","))
    return Field(name=columns[0]) if len(columns) == 1 else Field(name="pose", columns=columns)


def frames(config: Config) -> Frames:
    """Two frames, cut alike, so that nothing but the camera moves."""
    return Frames(count=2, least=config.least, most=config.most, order=config.order, together=True)


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """One crop; no flip, since a mirror makes left turns of right ones."""
    return (Crop(size=config.crop_size or image_size, scale=config.scale, flip_p=0.0),)


def paper(image_size: int, model: str) -> Recipe:
    """KITTI: grey frames of 32 px, at most a second apart; AdamW in place of SGD.

    `omma pretrain IMAGES --method egomotion --recipe paper --model timm:resnet18 --epochs 100`
    """
    return Recipe(config=Config(), batch=128, lr=1e-3, warmup=0.05, weight_decay=5e-4, clip=None)


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: neighbouring frames.

    `omma pretrain turntable.csv --method egomotion --method.pose azimuth`
    """
    return Recipe(
        config=Config(most=1.0), batch=64, lr=1e-3 if backbones.family(model).plain else 2e-3, lr_end=2e-5,
        warmup=0.05, weight_decay=0.05, clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder, a linear map to z, and the matrices of the patterns of motion."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config, self.field, self.encoder = config, _field(config).name, encoder
        # without the norm, features differ by less than the margin, and maps only move their mean
        self.head = nn.Sequential(BatchNorm(encoder.dim), nn.Linear(encoder.dim, config.out))
        self.sequences = tracks.sequences("egomotion", context)
        self.maps = None
        if "equiv" in config.mode:
            pairs = tracks.pairs("egomotion", context, frames(config), seed=0)
            poses = motions.checked(tracks.field("egomotion", context, self.field)[pairs])  # [p, 2, d]
            moves = motions.between(poses[:, 0], poses[:, 1], config.period)
            self.maps = motions.Maps(moves, poses.shape[-1], config.period, config.patterns, config.out)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        (x,) = batch.views
        z = self.head(self.encoder(x.flatten(0, 1)).pooled).float().unflatten(0, x.shape[:2])
        first, second = z.unbind(1)
        metrics, loss = {"length": z.detach().norm(dim=-1).mean()}, z.new_zeros(())
        if self.maps is not None:
            pattern = self.maps.pattern(batch.fields[self.field])
            loss, metrics["equivariance_error"] = motion.equivariance(
                first, second, self.maps.matrices, pattern, self.config.margin
            )
        if MODES[self.config.mode]:
            own = torch.from_numpy(self.sequences[batch.key.index]).to(z.device)
            everyone = collectives.gather(second), collectives.gather(own)
            power, weight = MODES[self.config.mode], self.config.slowness if self.maps else 1.0
            loss = loss + weight * motion.slowness(first, second, own, everyone, self.config.margin, power)
        return StepOutput(loss, metrics)

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.EQUIVARIANCE if self.maps is not None else ()

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
        if self.maps is not None:
            yield from param_groups.standard(self.maps, "maps", lr_scale=0.25)
