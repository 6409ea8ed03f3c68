"""What a method is trained with: its recipe, its groups of parameters, and where a run is."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from torch import nn

T = TypeVar("T")

# Of parameters that do not decay by default: a class, mask or other token; learned positions; a table of
# relative positions; a vector (bias, norm, scale).
Kind = Literal["token", "position", "table", "vector"]


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

    def warmup(self, epochs: float, share: float) -> float:
        """Epochs of a warm-up that takes `epochs`; in a run no longer than that, `share` of the run.

        In runs up to a quarter longer it is between the two: a run that ends at a time changes its total on
        the way, and no schedule may jump for that.
        """
        if self.epochs <= epochs:
            return share * self.epochs
        return epochs * (share + (1 - share) * min(4 * (self.epochs - epochs) / max(epochs, 1e-9), 1.0))


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
    by: Literal["step", "epoch"] = "step"  # when the rate changes, in runs longer than the warm-up
    late: bool = False  # each step (epoch) has the rate of the one before, the first its own
    drops: tuple[float, ...] = ()  # instead of the cosine: divided by 10 at these shares of the run
    scaled: bool = False  # `start` and `Recipe.lr_end` change with the batch as the peak does


def added(default: T, before: T) -> T:
    """A field that was added to a method's Config; `before` is what earlier versions did.

    A configuration leaves it out where it has that value, so that runs of earlier versions resume.
    """
    return field(default=default, metadata={"before": before})


def restored(config: type[T], settings: Mapping[str, Any]) -> T:
    """A method's Config from a run's settings; what these leave out has its `before` (`added`)."""
    fields: Any = dataclasses.fields(config)  # pyright: ignore[reportArgumentType]
    before = {f.name: f.metadata["before"] for f in fields if "before" in f.metadata}
    return config(**before | {name: _tuples(value) for name, value in settings.items()})


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# fields that runs of omma 0.1 do not know: their configurations stay the same where these are not set
_LATER = (
    "rate_by_batch", "warmup_epochs", "warmup_length", "schedule", "epoch_steps", "epoch_passes", "optimizer",
    "momentum_of", "eps", "decayed", "clip_by", "resolution", "momentum", "matrix_lr",
    "least_steps",
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
    warmup_epochs: float | None = None  # ... or epochs, in runs longer than that (`Clock.warmup`) ...
    warmup_length: int | None = None  # ... or optimizer steps, likewise
    schedule: Schedule = Schedule()
    epoch_steps: int | None = None  # steps that make an epoch; None: `epoch_passes`
    epoch_passes: float = 1.0  # over the images, that make an epoch: 1/3 where a step has three views of each
    optimizer: Literal["adamw", "lars", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)  # LARS: the first is its momentum
    momentum: float = 0.95  # of Muon's matrices, ...
    matrix_lr: float = 1.0  # ... whose rate is so many times that of all else
    # LARS: the momentum is one of updates, that is gradients times their rate, or the rate multiplies the
    # momentum of gradients; they differ where the rate changes
    momentum_of: Literal["updates", "gradients"] = "updates"
    eps: float = 1e-8  # of AdamW, and of what Muon leaves to it
    weight_decay: float = 0.05
    weight_decay_end: float | None = None  # cosine from weight_decay; None: constant
    decayed: tuple[Kind | str, ...] = ()  # what decays beside matrices and kernels: kinds, parameters' names
    clip: float | None = 3.0  # norm of gradients: of all together, ...
    clip_by: Literal["all", "part", "tensor"] = "all"  # ... of each part of the network, or of each tensor
    drop_path: float = 0.0
    # smaller views first: (share of the run, scale of the views' sides until then); their own size afterwards
    resolution: tuple[tuple[float, float], ...] = ()
    least_steps: int | None = None  # fewer were seen to teach less than raw pixels tell; None: not measured
    encoder: Mapping[str, Any] = field(default_factory=dict)  # backbone options, used if it has them

    def __post_init__(self) -> None:
        for name in ("batch", "lr", "epoch_steps", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value}: must be above 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup}: must be a share of the run in [0, 1)")
        if self.warmup_epochs is not None and self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs={self.warmup_epochs}: must be at least 0")

    def stages(self) -> tuple[tuple[float, float], ...]:
        """(share of the run, scale of the views' sides until then), up to the end."""
        return (*self.resolution, (1.0, 1.0))

    def scale(self, clock: Clock) -> float:
        """Of the views' sides at this step, in (0, 1]."""
        return next((scale for until, scale in self.stages() if clock.progress < until), 1.0)

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
        """What a run's configuration holds; what was added later only if it changes the run (`added`)."""
        unset = {f.name for f in dataclasses.fields(self) if getattr(self, f.name) == f.default}
        kept = {k: v for k, v in dataclasses.asdict(self).items() if k not in unset.intersection(_LATER)}
        for f in dataclasses.fields(self.config) if dataclasses.is_dataclass(self.config) else ():
            if "before" in f.metadata and getattr(self.config, f.name) == f.metadata["before"]:
                del kept["config"][f.name]
        return kept

    @classmethod
    def restored(cls, settings: Mapping[str, Any], config: type[Any]) -> "Recipe":
        """The recipe with these `settings` and a method's Config. Raises TypeError for unknown names."""
        kept = {name: _tuples(value) for name, value in settings.items()}
        schedule = Schedule(**kept.pop("schedule", {}))
        return cls(**kept | {"config": restored(config, settings["config"]), "schedule": schedule})

    def stated_warmup(self, clock: Clock) -> float | None:
        """Epochs of the warm-up that the recipe states, if it does."""
        if self.warmup_length is not None:
            return self.warmup_length * clock.epochs / clock.total
        return self.warmup_epochs

    def shortened(self, clock: Clock) -> bool:
        """Is the run too short for the warm-up that the recipe states?"""
        stated = self.stated_warmup(clock)
        return stated is not None and clock.epochs < 1.25 * stated

    def warmup_steps(self, clock: Clock) -> float:
        """Steps of the warm-up."""
        stated = self.stated_warmup(clock)
        return self.warmup * clock.total if stated is None else clock.steps(clock.warmup(stated, self.warmup))
