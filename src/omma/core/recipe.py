"""What a method is trained with: its recipe, its groups of parameters, and where a run is."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

# Of parameters that do not decay by default: a class, mask or other token; mask tokens alone; learned
# positions; a table of relative positions; a vector (bias, norm, scale).
Kind = Literal["token", "mask", "position", "table", "vector"]


@dataclass(frozen=True)
class Clock:
    """Where training is; every schedule is a pure function of it."""

    step: int  # optimizer steps done
    total: int  # steps of the whole run
    epoch: float  # epochs done: passes over the images, or what the recipe calls one (`Recipe.epoch_steps`)
    epochs: float = 1.0  # epochs of the whole run
    passes_per_epoch: float = 1.0  # over the images

    @property
    def progress(self) -> float:
        """Share of the run done, 0 to 1."""
        return min(self.step / max(self.total, 1), 1.0)

    @property
    def passes(self) -> float:
        """Passes over the images done."""
        return self.epoch * self.passes_per_epoch

    def steps(self, epochs: float) -> int:
        """Steps in so many epochs."""
        return round(epochs * self.total / self.epochs)


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters that share their optimizer settings."""

    label: str
    params: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    decay: bool = True  # without: only if `Recipe.decayed` names their kind
    frozen_until: float = 0.0  # in epochs
    frozen_share: float = 0.0  # frozen until this share of the run is done, too
    # until `frozen_until` their learning rate is 0 and their moments age; else they have no gradient
    ages: bool = False
    part: str = ""  # of the network, for `Recipe.clip_by`


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate gets to its peak and down again: a linear warm-up, then half a cosine.

    The defaults are omma's; published codes differ in which step has which rate, and recipes state it.
    """

    # step s of w steps of warm-up has (s + 1) / w, s / (w - 1) or s / w of the way from `start` to the peak
    ramp: Literal["next", "closed", "open"] = "next"
    start: float = 0.0
    whole: bool = False  # the cosine spans the whole run, and the warm-up replaces its beginning, as in timm
    by: Literal["step", "epoch"] = "step"  # when the rate changes
    late: bool = False  # each step (epoch) has the rate of the one before, the first its own
    drops: tuple[float, ...] = ()  # instead of the cosine: divided by 10 at these shares of the run
    scaled: bool = False  # `start` and `Recipe.lr_end` change with the batch as the peak does


# fields that runs of omma 0.1 do not know: their configurations stay the same where these are not set
_LATER = (
    "rate_by_batch", "warmup_epochs", "schedule", "epoch_steps", "optimizer", "eps", "decayed", "clip_by",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a method is trained with; a method's file offers `paper` and `small` recipes."""

    config: Any  # the method's Config
    batch: int
    lr: float  # peak, for this batch size ...
    rate_by_batch: Literal["linear", "sqrt", "none"] = "sqrt"  # ... and how it changes for another
    lr_end: float = 1e-6
    warmup: float = 0.1  # share of the run ...
    warmup_epochs: float | None = None  # ... or epochs, in runs that are longer than that
    schedule: Schedule = Schedule()
    epoch_steps: int | None = None  # steps that make an epoch; None: a pass over the images
    optimizer: Literal["adamw", "lars"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)  # LARS: the first is its momentum
    eps: float = 1e-8  # of AdamW
    weight_decay: float = 0.05
    weight_decay_end: float | None = None  # cosine from weight_decay; None: constant
    decayed: tuple[Kind, ...] = ()  # what decays beside matrices and kernels
    clip: float | None = 3.0  # gradient norm ...
    clip_by: Literal["all", "part", "tensor"] = (
        "all"  # ... of all, of each part of the network, of each tensor
    )
    drop_path: float = 0.0
    encoder: Mapping[str, Any] = field(default_factory=dict)  # backbone options, used if it has them

    def __post_init__(self) -> None:
        for name in ("batch", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup}: must be a share of the run in [0, 1)")

    def for_batch(self, batch: int) -> "Recipe":
        """The recipe for another batch size, with the learning rate that belongs to it."""
        power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[self.rate_by_batch]
        factor = (batch / self.batch) ** power
        scaled = dataclasses.replace(self, batch=batch, lr=self.lr * factor)
        if not self.schedule.scaled:
            return scaled
        schedule = dataclasses.replace(self.schedule, start=self.schedule.start * factor)
        return dataclasses.replace(scaled, lr_end=self.lr_end * factor, schedule=schedule)

    def settings(self) -> dict[str, Any]:
        """What a run's configuration keeps; fields that were added later only if they are set."""
        later = {f.name: f.default for f in dataclasses.fields(self) if f.name in _LATER}
        kept = dataclasses.asdict(self)
        return {k: v for k, v in kept.items() if k not in later or getattr(self, k) != later[k]}

    def warmup_steps(self, clock: Clock) -> float:
        """Steps of the warm-up; in a run that is no longer than `warmup_epochs`, the share `warmup` of it."""
        if self.warmup_epochs is None or self.warmup_epochs >= clock.epochs:
            return self.warmup * clock.total
        return clock.steps(self.warmup_epochs)
