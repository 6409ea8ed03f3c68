"""Distil: learn a trained network's features of images and patches [Ranzinger 2023, arXiv 2312.06709].

Student and frozen teacher see the same view, each at its own size. Linear maps take the student's pooled and
patch features to the teacher's width; the finer of the two grids of patches is averaged over the coarser's
cells.

    L = w_p d_0(P s, t) + w_f 1/n sum_i d_b(Q s_i, t_i),   d_b = (1 - b)(1 - cos) + b smooth-L1

With `standardise`, t has mean 0 and deviation 1 in each dimension, by running averages; features of a network
that ends in a ReLU are all positive, and without it most of a cosine is their common mean.

With `period` P the views of epoch e are those of epoch e mod P. The teacher's features of these P views of
each image are computed once and kept (fp16, in memory, or in a temporary file where they are large), so that
after P epochs all time is the student's. They are computed again after a restart, and change nothing.

Costs: a forward pass of the teacher on P views of each image, then one of the student's steps per view.
Choose it when a trained network sees your images well, and you need another, smaller or faster one.
"""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma import backbones
from omma.backbones.layers import frozen
from omma.core import collectives, protocols
from omma.core.checks import above_zero, at_least_zero, range_within_one, within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Colour,
    Context,
    Crop,
    Features,
    HealthSignal,
    Key,
    Needs,
    ParamGroup,
    Preprocess,
    Recipe,
    StepOutput,
    Trained,
)
from omma.losses import prediction
from omma.methods.shared import crops
from omma.train import param_groups

IN_MEMORY = 4 << 30  # bytes of features; more go into a temporary file
CHUNK = 32  # images of the teacher's passes, always: what it computes depends on no restart
SLOWEST = 0.002  # share of a step in the running averages


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's losses, for one teacher; every view is new."""

    teacher: str | None = None  # any trained model
    teacher_size: int | None = None  # pixels that the teacher sees a view with; None: those it was made for
    pooled: float = 1.0  # weight of the image's feature
    patches: float = 1.0  # weight of the patches' features
    smooth: float = 0.1  # share of smooth-L1 in the patches' loss, else cosine
    pooled_smooth: float = 0.0  # the same of the image's
    standardise: bool = False  # each dimension of the targets
    period: int = 0  # epochs after which views repeat, and the teacher's features are kept; 0: never
    crop_size: int | None = None  # pixels of the student's views; None: the image size
    scale: tuple[float, float] = (0.2, 1.0)
    colour: float = 0.5  # strength of jitter
    blur: bool = True  # off under 64 px

    def __post_init__(self) -> None:
        at_least_zero(self, "pooled", "patches", "period", "colour")
        within_one(self, "smooth", "pooled_smooth")
        range_within_one(self, "scale")
        if self.teacher_size is not None:
            above_zero(self, "teacher_size")
        if not self.pooled + self.patches:
            raise ValueError("method.pooled and method.patches are both 0: one of them must be learned")


def needs(config: Config) -> Needs:
    """A trained model; to keep its features, the numbers of the images."""
    return Needs(
        model="teacher",
        kind="a trained model (a weights file, timm:NAME, hf:NAME, or a run of yours)",
        numbered=config.period > 0,
        period=config.period,
    )


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """One crop, seen by both."""
    colour = crops.pair_colour(config.colour, 0.5 if config.blur else 0.0, 0.0) if config.colour else Colour()
    return (Crop(size=config.crop_size or image_size, scale=config.scale, colour=colour),)


def paper(image_size: int, model: str) -> Recipe:
    """Millions of images of any kind: every view is new, and the teacher sees each; AdamW in place of LAMB.

    `omma pretrain IMAGES --method distil --method.teacher MODEL --recipe paper --model vit-s/16 --epochs 100`
    """
    return Recipe(config=Config(), batch=1024, lr=1e-3, warmup=0.05, weight_decay=0.02, clip=1.0)


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: four views of each image, whose targets are computed once."""
    plain, tiny = backbones.family(model).plain, image_size < 64
    config = Config(period=4, standardise=True, scale=(0.5, 1.0), colour=0.25 if tiny else 0.5, blur=not tiny)
    return Recipe(
        config=config, batch=128, lr=1e-3 if plain else 2e-3, lr_end=1e-5, warmup=0.05, weight_decay=0.05,
        clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Targets(NamedTuple):
    """What the teacher says of views."""

    pooled: Float[Tensor, "b t"]
    patches: Float[Tensor, "b n t"]


class Method(protocols.Method):
    """Student, two linear maps, running averages of the targets, and the frozen teacher."""

    moments: Tensor

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        assert context.model is not None, "guaranteed by Needs.model"
        assert context.preprocess is not None
        self.config, self.encoder = config, encoder
        size = config.crop_size or context.image_size
        self.teacher = Teacher(context.model, context.preprocess, config.teacher_size)
        (rows, columns), own = self.teacher.grid, encoder.grid(size, size)
        self.grid = (min(rows, own[0]), min(columns, own[1]))
        width = self.teacher.encoder.dim
        self.pooled_head = nn.Linear(encoder.dim, width) if config.pooled else None
        self.patch_head = nn.Linear(encoder.dim, width) if config.patches else None
        # of image and patches: mean, and mean square, of each dimension
        self.register_buffer("moments", torch.tensor([0.0, 1.0])[None, :, None].repeat(2, 1, width))
        rows = self.grid[0] * self.grid[1] if config.patches else 0
        self.kept = Kept(config.period, context.images, rows + 1, width) if config.period else None

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c = self.config
        images = batch.views[0][:, 0]
        raw = self._targets(images, batch.key)
        targets = Targets(*(self._standardised(i, each) for i, each in enumerate(raw)))
        features = self.encoder(images)
        loss, metrics = images.new_zeros((), dtype=torch.float32), {}
        if self.pooled_head is not None:
            predicted = self.pooled_head(features.pooled)
            value, metrics["cosine"] = _distance(predicted, targets.pooled, c.pooled_smooth)
            loss = loss + c.pooled * value
        if self.patch_head is not None:
            predicted = self.patch_head(on_grid(features, self.grid))
            value, metrics["cosine_patches"] = _distance(
                predicted.flatten(0, 1), targets.patches.flatten(0, 1), c.smooth
            )
            loss = loss + c.patches * value
        with torch.no_grad():  # the best constant answer is the mean direction of all targets
            first = targets.pooled if self.pooled_head is not None else targets.patches.flatten(0, 1)
            metrics["cosine_of_constant"] = collectives.mean(F.normalize(first, dim=-1).mean(0)).norm()
            moments = torch.stack([_moments(raw.pooled), _moments(raw.patches.flatten(0, 1))])
        return StepOutput(loss, metrics, moments)

    def after_step(self, clock: Clock, carries: Sequence[Any]) -> None:
        """Running averages: plain ones over the first steps."""
        moments = collectives.mean(torch.stack(list(carries)).mean(0))
        self.moments.lerp_(moments, max(1 / (clock.step + 1), SLOWEST))

    @torch.no_grad()
    def _standardised(self, kind: int, target: Float[Tensor, "*b t"]) -> Float[Tensor, "*b t"]:
        if not self.config.standardise:
            return target
        mean, square = self.moments[kind]
        return (target - mean) / (square - mean.square()).clamp(min=1e-6).sqrt()

    @torch.no_grad()
    def _targets(self, images: Float[Tensor, "b c h w"], key: Key) -> Targets:
        """The teacher's features of the views, in fp32, as they were kept, or computed now."""
        if self.kept is None:
            rows = self._rows(images)
        else:
            slots = self.kept.slots(key)
            for some in np.array_split(missing := self.kept.missing(slots), -(-len(missing) // CHUNK) or 1):
                if len(some):
                    full = np.resize(some, CHUNK)  # repeated
                    self.kept.put(slots[some], self._rows(images[torch.from_numpy(full)])[: len(some)])
            rows = self.kept.get(slots, images.device)
        return Targets(rows[:, 0], rows[:, 1:] if self.config.patches else rows[:, :1])

    def _rows(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b r t"]:
        """The pooled feature and, if they are learned, those of patches."""
        features = self.teacher(images)
        pooled = features.pooled[:, None]
        rows = torch.cat([pooled, on_grid(features, self.grid)], 1) if self.config.patches else pooled
        return rows.float()

    def health_signals(self) -> Sequence[HealthSignal]:
        metric = "cosine" if self.config.pooled else "cosine_patches"
        return (
            HealthSignal(
                kind="remedy", metric=metric, limit=-1.0, remedy="Lower --lr, or choose another teacher"
            ),
        )

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        for name, head in (("pooled", self.pooled_head), ("patches", self.patch_head)):
            if head is not None:
                yield from param_groups.standard(head, name)


def _distance(
    predicted: Float[Tensor, "m t"], target: Float[Tensor, "m t"], smooth: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(1 - smooth)(1 - cos) + smooth smooth-L1, a mean over rows, and the cosine."""
    count = collectives.mean(predicted.new_tensor(float(len(predicted)), dtype=torch.float32))
    cosine = -prediction.cosine(predicted, target, count)
    loss = (1 - smooth) * (1 - cosine)
    if smooth:
        loss = loss + smooth * prediction.smooth_l1(predicted, target, count)
    return loss, cosine.detach()


def _moments(x: Float[Tensor, "m t"]) -> Float[Tensor, "2 t"]:
    return torch.stack([x.mean(0), x.square().mean(0)])


def on_grid(features: Features, grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
    """Patch features averaged over the cells of a coarser grid."""
    if features.grid == grid:
        return features.patches
    x = features.patches.transpose(1, 2).unflatten(2, features.grid)
    return F.adaptive_avg_pool2d(x.float(), grid).flatten(2).transpose(1, 2).to(x.dtype)


class Teacher(nn.Module):
    """A trained encoder, always in evaluation mode and without gradients, on images prepared for another.

    seen: preprocessing of its input images. size: pixels that they are resized to; None: its own.
    Raises ValueError if the numbers of channels differ, and for a size that it cannot read.
    """

    def __init__(self, trained: Trained, seen: Preprocess, size: int | None) -> None:
        super().__init__()
        self.encoder, self.seen, self.preprocess = trained.encoder, seen, trained.preprocess
        self.size = size or trained.preprocess.size
        frozen.require_channels(f"the teacher {trained.encoder.name}", trained, seen)
        self.grid = self.encoder.grid(self.size, self.size)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c h w"]) -> Features:
        size = (self.size, self.size)
        return self.encoder(frozen.prepared(images, self.seen, self.preprocess, size))


class Kept:
    """The teacher's features of `period` views of each image, in fp16: no state, since it can be recomputed.

    Raises ValueError where neither memory nor the folder for temporary files has room.
    """

    def __init__(self, period: int, images: int, rows: int, width: int) -> None:
        self.period, self.images = period, images
        shape = (period * images, rows, width)
        size = 2 * period * images * rows * width
        if size <= IN_MEMORY:
            self.values = torch.empty(shape, dtype=torch.float16)
        else:
            folder = tempfile.gettempdir()
            if size > 0.9 * shutil.disk_usage(folder).free:
                raise ValueError(
                    f"the teacher's features of {period} views of {images:,} images take {size / 1e9:,.0f} "
                    f"GB, for which {folder} has no room: lower --method.period (0: keep none), or give "
                    "--method.patches 0"
                )
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this)
            self.values = torch.from_numpy(np.memmap(self._file, np.float16, "w+", shape=shape))
        self.filled = np.zeros(period * images, bool)

    def slots(self, key: Key) -> np.ndarray:
        """Where the features of a batch's views are."""
        return (key.epoch % self.period) * self.images + key.index

    def missing(self, slots: np.ndarray) -> np.ndarray:
        """Positions in the batch of features to be computed."""
        return np.flatnonzero(~self.filled[slots])

    def put(self, slots: np.ndarray, rows: Tensor) -> None:
        limit = torch.finfo(torch.float16).max
        self.values[torch.from_numpy(slots)] = rows.clamp(-limit, limit).to("cpu", torch.float16)
        self.filled[slots] = True

    def get(self, slots: np.ndarray, device: torch.device) -> Tensor:
        return self.values[torch.from_numpy(slots)].to(device).float()
