"""What a user asks of `omma pretrain`: its options, written once for the command line and for Python."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from omma.core import own
from omma.core.checks import one_of
from omma.core.duration import seconds
from omma.core.stages import resolution_of

if TYPE_CHECKING:  # the command line reads this file before it imports torch
    from omma.core.protocols import ImageSource

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Auto = Literal["auto"]

SHARDS = ("auto", "none", "fsdp")
TRACKERS = ("none", "wandb", "mlflow")
COMPILE = ("auto", "on", "off")
DECODERS = ("cpu", "gpu")
RECIPES = ("auto", "small", "paper")
ENDS = ("budget", "epochs", "steps")
DEFAULT_BUDGET = "30m"


def ignore(event: Any) -> None:
    """Listen to nothing."""


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Which labelled images a classifier learns from, and which it is judged on meanwhile."""

    shots: int | None = None  # of each class; None: all
    fraction: float | None = None  # of each class
    holdout: float = 0.2  # share of each class that is held out; 0: none
    patience: int = 10  # readings without improvement after which training ends; 0: never
    # columns of zeros and ones, one a class, that are the labels; () for what the source says of itself
    label_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.shots is not None and self.fraction is not None:
            raise ValueError("--shots and --fraction are both given: choose one")
        if self.shots is not None and self.shots < 1:
            raise ValueError(f"--shots {self.shots}: must be at least 1")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"--fraction {self.fraction}: must be above 0 and at most 1")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"--holdout {self.holdout}: must be a share in [0, 1); 0 holds nothing out")
        if self.patience < 0:
            raise ValueError(f"--patience {self.patience}: must be at least 0 (never ends early)")


@dataclass(frozen=True)
class Request:
    """Pretrain an encoder on images without labels.

    The same call again resumes a run that was stopped. A method's own options are set with
    --method.KEY VALUE, a backbone's with --model.KEY VALUE; `omma methods NAME` and `omma models NAME` list
    them.

    Attributes:
        images: Folder, glob, .zip, .tar, shards, manifest (.csv .parquet .jsonl), .npz, .npy or IDX .gz; in
            Python also an array, a list of paths or pictures, or a data set of PyTorch or Hugging Face
            (docs/input.md).
        method: Pretraining method; `omma methods` lists them.
        label_depth: Where labels are used, the folder that names the class: its level below `images` (1 is
            the first, -1 the one that holds the image), or path: all together (docs/input.md).
        group: Column of images that belong together, such as a site: whole groups are held out. By default
            sequence, where the table has it; folder: the folder of an image; none.
        model: Backbone; `omma models` lists them. MODULE:FUNCTION: what a function marked by `omma.network`
            returns (docs/own_network.md); in Python also the function itself.
        init: Weights to start from (docs/continue.md): a run folder, a weights file, timm:NAME or hf:NAME;
            model and image size are then theirs unless you set them.
        architecture: With --init, the network that its file holds, where omma does not recognise it.
        allow_partial: With --init, accept weights that lack many of the network's parameters.
        head_warmup: With --init, share of the run in which the encoder is frozen (.1).
        encoder_lr_scale: With --init, the encoder's learning rate as a share of the heads' (.1).
        adapt: With --init, train an adapter inserted into the encoder, which stays as it is: lora, vpt, bias,
            ... (docs/finetune.md).
        out: Run folder; by default runs/ and a name made of images, method and model.
        budget: Time to end at, such as 90s, 10m or 2h; 30m if no end is given.
        epochs: Passes over the images; another way to give the end.
        steps: Optimizer steps; another way to give the end.
        image_size: Pixels along a side that the network sees.
        resolution: Smaller views early in the run, as SCALE@SHARE: .5@.5,.75@.8 halves their sides in the
            first half, and has three quarters of them until .8 of it; full: their own size throughout; auto:
            as the recipe says (docs/runs.md).
        batch_size: Images a step, over all processes.
        accumulate: Micro-batches that a step is computed in, to save memory; auto: as few as fit.
        recompute: Compute activations again in the backward pass, to save memory; a third more work.
        compile: on or off: a transformer's blocks by torch.compile; auto: on GPUs, in long runs, if faster.
        lr: Peak learning rate.
        recipe: small or paper.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        shard: none or fsdp: a copy of the network on each process, or its blocks sharded over all
            (docs/scale.md).
        seed: Of everything random.
        workers: Processes that decode images.
        cache: Keep images decoded and resized on disk; their size is printed before they are written.
        decode: cpu or gpu: what decodes JPEGs; gpu needs an NVIDIA GPU and the package torchcodec.
        checkpoint_every: Seconds between checkpoints.
        accept_changed_data: Resume although images were added, removed or changed since the run began.
        extend: Continue a run that was to end earlier to the budget, epochs or steps given now.
        track: wandb or mlflow: send metrics and configuration there, too (docs/runs.md); none.
        profile: Print what the parts of a step take, and what share of the machine's limit is reached.
        options: The method's own options, by the names in its Config.
        model_options: The backbone's own options (`backbones.options(name)`).
        adapt_options: The adapter's own options, by the names in its Config.
        supervision: Which labelled images a classifier learns from (`omma.finetune`).
        listen: Is called with each event of the run (`pretraining.events.Event`).
    """

    images: "ImageSource"
    _: KW_ONLY
    method: str = "auto"
    label_depth: int | Literal["path"] | None = None
    group: str | None = None
    model: str | Callable[..., Any] = "auto"
    init: str | Path | None = None
    architecture: str | None = None
    allow_partial: bool = False
    head_warmup: float | None = None
    encoder_lr_scale: float | None = None
    adapt: str | None = None
    out: str | Path | None = None
    budget: str | float | None = None
    epochs: float | None = None
    steps: int | None = None
    image_size: int | Auto | None = "auto"
    resolution: str = "auto"
    batch_size: int | Auto | None = "auto"
    accumulate: int | Auto | None = "auto"
    recompute: bool = False
    compile: str = "auto"
    lr: float | Auto | None = "auto"
    recipe: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    shard: str = "auto"
    seed: int = 0
    workers: int | Auto | None = "auto"
    cache: bool = False
    decode: str = "cpu"
    checkpoint_every: float = 300.0
    accept_changed_data: bool = False
    extend: bool = False
    track: str = "none"
    profile: bool = False
    options: Mapping[str, Any] | None = None
    model_options: Mapping[str, Any] | None = None
    adapt_options: Mapping[str, Any] | None = None
    supervision: Supervision = Supervision()
    listen: Callable[[Any], None] = field(default=ignore, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            object.__setattr__(self, "model", own.name_of(self.model))
        ends = [name for name in ENDS if getattr(self, name) is not None]
        if len(ends) > 1:
            raise ValueError(f"{' and '.join(ends)} are both given: choose one end for the run")
        if self.extend and not ends:
            raise ValueError(
                "--extend continues a run to a later end: give it as --steps, --epochs or --budget"
            )
        for name in ("epochs", "steps", "image_size", "batch_size", "accumulate", "lr", "checkpoint_every"):
            value = chosen(getattr(self, name))
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value}: must be above 0")
        if self.resolution != "auto":
            resolution_of(self.resolution)
        seconds(self.budget or DEFAULT_BUDGET)
        one_of("recipe", self.recipe, RECIPES)
        one_of("shard", self.shard, SHARDS)
        one_of("compile", self.compile, COMPILE)
        one_of("decode", self.decode, DECODERS)
        one_of("track", self.track, TRACKERS)
        if self.decode == "gpu" and self.cache:
            raise ValueError(
                "--cache keeps images decoded, and --decode gpu decodes them each time: give only one of them"
            )
        named = [name for name in ("architecture", "allow_partial", "adapt") if getattr(self, name)]
        about_init = [*named, *self.init_options()]
        if self.init is None and about_init:
            raise ValueError(
                f"{about_init[0]} is about weights to start from, and none are given: give --init too"
            )

        if self.adapt is None and self.adapt_options:
            raise ValueError(f"--adapt.{next(iter(self.adapt_options))}: give the adapter too (--adapt lora)")

    @property
    def model_name(self) -> str:
        """The backbone's name, also where `model` was a function; "auto" for none."""
        return str(self.model)

    @property
    def end(self) -> dict[str, float]:
        """Where the run ends, under one of the names in ENDS."""
        ends = {"epochs": self.epochs, "steps": self.steps, "budget": self.seconds}
        return {name: end for name, end in ends.items() if end is not None}

    @property
    def seconds(self) -> float | None:
        """Time that the run may take; None if it ends after a number of epochs or steps."""
        if self.epochs is not None or self.steps is not None:
            return None
        return seconds(self.budget or DEFAULT_BUDGET)

    def init_options(self) -> dict[str, Any]:
        """What the user set of how initial weights are treated."""
        names = ("head_warmup", "encoder_lr_scale")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def chosen(value: T | Auto | None) -> T | None:
    """The user's value; None for "auto"."""
    return None if value is None or value == "auto" else value  # pyright: ignore[reportReturnType]


def takes(request: Callable[P, R]) -> Callable[[Callable[[R], T]], Callable[P, T]]:
    """Let a function of one request be called with the request's fields as arguments."""

    def decorate(function: Callable[[R], T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return function(request(*args, **kwargs))

        setattr(call, "__signature__", inspect.signature(request))  # noqa: B010 (functions have no such field)
        call.__doc__ = f"{inspect.getdoc(function)}\n\n{inspect.getdoc(request)}"
        return call

    return decorate


def option_fields(request: type) -> list[dataclasses.Field[Any]]:
    """Its fields that are options of the command line."""
    apart = ("images", "options", "model_options", "adapt_options", "supervision", "listen")
    return [f for f in dataclasses.fields(request) if f.name not in apart]
