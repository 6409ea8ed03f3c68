"""What a user asks of `omma finetune`: its options, written once for the command line and for Python."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omma.core.checks import one_of
from omma.pretraining.request import ENDS, Auto, Request, Supervision, ignore

if TYPE_CHECKING:  # the command line reads this file before it imports torch
    from omma.core.protocols import ImageSource

FULL = "full"
CHOSEN = ("head", "auto")  # what the engine does not train, or not alone
WHOLE = (FULL, "transfg")  # all of the encoder learns
ADAPTER_RATE = 5.0  # an adapter's learning rate, as a multiple of the head's
DEFAULT_BUDGET = "10m"
BALANCES = ("none", "loss", "sampler")
# fields that `Request` has under the same name and meaning
SHARED = (
    "images", "label_depth", "group", "architecture", "allow_partial", "out", "epochs", "steps", "image_size",
    "batch_size", "accumulate", "recompute", "compile", "lr", "recipe", "device", "precision", "seed",
    "workers", "cache", "checkpoint_every", "accept_changed_data", "extend", "track", "profile",
    "model_options", "listen",
)  # fmt: skip


@dataclass(frozen=True)
class FineTuning:
    """Make a classifier from a trained encoder and labelled images, 5 or 100,000.

    The same call again resumes a run that was stopped. Options of the recipe are set with --method.KEY VALUE
    (`omma methods finetune` lists them), an adapter's with --adapt.KEY VALUE (docs/finetune.md).

    Attributes:
        model: The encoder: a run folder, a weights file, timm:NAME or hf:NAME. If it has a classifier of
            these classes, that goes on learning.
        images: Labelled images: class folders, or a table with a label column (docs/input.md). Only their
            train part is used, if they have parts.
        adapt: What learns: head (on frozen features), full (all of the encoder), or an adapter in it: lora,
            vpt, bias, ...; auto: the simplest that is as good as the best (docs/auto.md). For CLIP-like
            models also coop (learned prompts) and zeroshot (docs/clip.md).
        shots: Labelled images of each class to learn from; by default all.
        fraction: Share of each class to learn from.
        holdout: Share of each class that is held out, to tell how good the classifier is and when it is best.
        patience: Readings without improvement after which training ends; 0: never.
        balance: loss or sampler makes up for classes of different sizes; none.
        semi: Refused: images without labels are learned from by `omma pretrain`, first.
        out: Run folder; by default runs/ and a name made of images and model.
        budget: Time to end at, such as 90s, 10m or 2h; 10m if no end is given.
        epochs: Passes over the images; another way to give the end.
        steps: Optimizer steps; another way to give the end.
        head_warmup: Share of the run in which the head learns alone.
        encoder_lr_scale: The encoder's learning rate as a share of the head's.
        label_depth: Folder that names the class: its level below `images` (1 is the first, -1 the one that
            holds the image), or path: all together (docs/input.md).
        group: Column of images that belong together, such as a patient: whole groups are held out. By
            default sequence, where the table has it; folder: the folder of an image; none.
        label_columns: Columns of the table, of zeros and ones, one a class: an image may have several labels.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        image_size: Pixels along a side that the network sees; by default what the weights were made for.
        batch_size: Images a step, over all processes.
        accumulate: Micro-batches that a step is computed in, to save memory; auto: as few as fit.
        recompute: Compute activations again in the backward pass, to save memory; a third more work.
        compile: on or off: a transformer's blocks by torch.compile; auto: on GPUs, in long runs, if faster.
        lr: Peak learning rate of the head.
        recipe: small or paper.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        seed: Of everything random: which images are held out and drawn, views, batches.
        workers: Processes that decode images.
        cache: Keep images decoded and resized on disk; their size is printed before they are written.
        checkpoint_every: Seconds between checkpoints.
        accept_changed_data: Resume although images were added, removed or changed since the run began.
        extend: Continue a run that was to end earlier to the budget, epochs or steps given now.
        track: wandb or mlflow: send metrics and configuration there, too (docs/runs.md); none.
        profile: Print what the parts of a step take, and what share of the machine's limit is reached.
        options: The recipe's own options, by the names in the Config of methods/finetune.py.
        adapt_options: The adapter's own options, by the names in its Config.
        model_options: The backbone's own options (`backbones.options(name)`).
        listen: Is called with each event of the run (`pretraining.events.Event`).
    """

    model: str | Path
    images: "ImageSource"
    _: KW_ONLY
    adapt: str = "auto"
    shots: int | None = None
    fraction: float | None = None
    holdout: float = 0.2
    patience: int = 10
    balance: str = "none"
    semi: bool = False
    out: str | Path | None = None
    budget: str | float | None = None
    epochs: float | None = None
    steps: int | None = None
    head_warmup: float | None = None
    encoder_lr_scale: float | None = None
    label_depth: int | Literal["path"] | None = None
    group: str | None = None
    label_columns: tuple[str, ...] = ()
    architecture: str | None = None
    allow_partial: bool = False
    image_size: int | Auto | None = "auto"
    batch_size: int | Auto | None = "auto"
    accumulate: int | Auto | None = "auto"
    recompute: bool = False
    compile: str = "auto"
    lr: float | Auto | None = "auto"
    recipe: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    workers: int | Auto | None = "auto"
    cache: bool = False
    checkpoint_every: float = 300.0
    accept_changed_data: bool = False
    extend: bool = False
    track: str = "none"
    profile: bool = False
    options: Mapping[str, Any] | None = None
    adapt_options: Mapping[str, Any] | None = None
    model_options: Mapping[str, Any] | None = None
    listen: Callable[[Any], None] = field(default=ignore, repr=False)

    def __post_init__(self) -> None:
        if self.semi:
            raise ValueError(
                "--semi: omma does not learn from labelled and unlabelled images at once: run `omma pretrain "
                f"IMAGES --init {self.model}` on all of them first, then `omma finetune` the result"
            )
        one_of("balance", self.balance, BALANCES)
        if self.adapt in (FULL, "auto") and self.adapt_options:
            raise ValueError(f"--adapt.{next(iter(self.adapt_options))}: give the adapter too (--adapt lora)")
        self.request()  # refuses what the engine refuses

    def request(self) -> Request:
        """What the engine is asked for. An adapter that learns alone needs no gentle rate and no warm-up."""
        options = {"balance": self.balance} if self.balance != "none" else {}
        if self.adapt not in WHOLE:
            options |= {"layer_decay": 1.0, "encoder_lr_scale": ADAPTER_RATE, "head_warmup": 0.0}
        given = {"head_warmup": self.head_warmup, "encoder_lr_scale": self.encoder_lr_scale}
        options |= {name: value for name, value in given.items() if value is not None}
        ended = any(getattr(self, name) is not None for name in ENDS)
        return Request(
            **{name: getattr(self, name) for name in SHARED},
            method="finetune",
            init=self.model,
            adapt=None if self.adapt in (FULL, *CHOSEN) else self.adapt,
            budget=self.budget if ended else DEFAULT_BUDGET,
            options={**options, **(self.options or {})},
            adapt_options=None if self.adapt in CHOSEN else self.adapt_options or None,
            supervision=Supervision(
                shots=self.shots,
                fraction=self.fraction,
                holdout=self.holdout,
                patience=self.patience,
                label_columns=tuple(self.label_columns),
            ),
        )
