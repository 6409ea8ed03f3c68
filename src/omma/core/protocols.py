"""What the layers of omma promise each other: samples, views, batches, methods (and see backbone.py)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from omma.core.backbone import Backbone as Backbone
from omma.core.backbone import Features as Features
from omma.core.backbone import NoAttention as NoAttention
from omma.core.crops import Colour as Colour
from omma.core.crops import Crop as Crop
from omma.core.crops import RandAugment as RandAugment
from omma.core.crops import Spectrum as Spectrum
from omma.core.preprocess import Preprocess as Preprocess
from omma.core.recipe import Clock as Clock
from omma.core.recipe import ParamGroup as ParamGroup
from omma.core.recipe import Recipe as Recipe
from omma.core.recipe import Schedule as Schedule
from omma.core.sequences import Field as Field
from omma.core.sequences import Frames as Frames
from omma.core.sequences import Tracks as Tracks


# ---------------------------------------------------------------- samples
class BadImage(ValueError):
    """A file that cannot be used, with the reason in a few words; it never ends a run."""


class Inaccessible(BadImage):
    """An image that cannot be read now (permission, network, I/O): left out this time, never remembered."""

    PREFIX = "not accessible now: "

    def __init__(self, why: str) -> None:
        super().__init__(why if why.startswith(self.PREFIX) else self.PREFIX + why)

    @classmethod
    def is_reason(cls, reason: str) -> bool:
        """Whether a reason, as lists of skipped images have it, is one of these."""
        return reason.startswith(cls.PREFIX)


@runtime_checkable
class Images(Protocol):
    """An indexed collection of images; nothing is decoded until `read`.

    Must pickle cheaply (data-loading workers receive it) and take under 200 bytes a path.
    """

    channels: int  # what `read` returns, for every image
    labels: np.ndarray | None  # int64 [n], -1 where unlabelled; None if nothing is labelled
    classes: tuple[str, ...]  # name of each label; () without labels
    splits: np.ndarray | None  # str [n]: "train" | "test" (val and valid count as "test"); None if unsplit

    def __len__(self) -> int: ...

    def path(self, i: int) -> str:
        """The name of image i for people: its path relative to the source."""
        ...

    def read(self, i: int, at_least: int | None = None) -> np.ndarray:
        """Decode image i to [h, w, channels]: uint8, uint16, or float32 for files of any other type.

        `at_least`: a shorter side of this many pixels suffices (JPEG is then decoded at reduced scale).
        Raises BadImage.
        """
        ...

    def subset(self, indices: np.ndarray) -> "Images":
        """The same collection restricted to `indices`, in that order."""
        ...


class Indexable(Protocol):
    """What a program holds one by one: a list or array of pictures or paths, or a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


# what a user gives as images: a path, an open collection, pictures, a data set (docs/input.md)
ImageSource = str | os.PathLike[str] | Images | Indexable | Image.Image


# ---------------------------------------------------------------- randomness
class Key(NamedTuple):
    """Where the random numbers of each image of a batch come from: (seed, epoch, index) and nothing else."""

    seed: int
    epoch: np.ndarray  # int64 [b]
    index: np.ndarray  # int64 [b]


# ---------------------------------------------------------------- batches
class Batch(NamedTuple):
    """A method's input."""

    views: tuple[Float[Tensor, "b v c s s"], ...]  # one tensor for each Crop of the plan, normalised
    key: Key
    labels: Int[Tensor, "b"] | None = None  # read by supervised methods only; -1: unlabelled
    text: Int[Tensor, "b l"] | None = None  # tokens of one caption an image, read by methods of text only
    # of images with several labels, instead of `labels`: 1, the class applies; 0, it does not; -1, not known
    label_sets: Float[Tensor, "b k"] | None = None
    # numbers of a table's columns by the names of `Needs.fields`, [b, d]; with `frames` of each, [b, v, d]
    fields: Mapping[str, Tensor] = MappingProxyType({})


# ---------------------------------------------------------------- methods
class StepOutput(NamedTuple):
    loss: Float[Tensor, ""]
    metrics: Mapping[str, Tensor]  # scalars worth plotting, detached
    carry: Any = None  # what after_step needs, one for each micro-batch


class Reconstruction(NamedTuple):
    """Images as a method reconstructs them, for its report."""

    images: Float[Tensor, "b c h w"]  # normalised as what was given
    hidden: Bool[Tensor, "b h w"] | None  # pixels that the encoder did not see; None: it saw all of them
    caption: str  # what is shown, in a sentence


class Extras(NamedTuple):
    """What is saved beside an encoder because others can use it: a classifier, a tokenizer's codes."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = MappingProxyType({})  # JSON values: names of classes, numbers of heads


NO_EXTRAS = Extras({})


class Trained(Protocol):
    """A trained model that a method learns from."""

    encoder: Backbone
    extras: Extras

    @property
    def preprocess(self) -> Preprocess: ...


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method requires beside images; without it a run is refused before any image is decoded.

    A method's file states it in `needs(config)`; without that, any images and any backbone will do.
    """

    labels: bool = False
    # is it judged on held-out images, and the best of its states kept (methods/shared/classifies.py)?
    holds_out: bool = False
    patience: int | None = None  # readings without improvement after which it ends; None: as requested
    fits_head: bool = False  # does a linear classifier of the frozen features come first?
    balanced: bool = False  # each class must be drawn equally often
    label_sets: bool = False  # several labels an image will do, too (Batch.label_sets)
    text: bool = False
    model: str | None = None  # field of Config that names a trained model to learn from ...
    kind: str = ""  # ... and what that is, with where to get one: "a tokenizer (train one: ...)"
    fields: tuple[Field, ...] = ()  # numbers of a table's columns that come with each image (Batch.fields)
    # field of Config that may hold a template, from which captions are composed of a table's columns
    caption: str | None = None
    beside: tuple[str, ...] = ()  # names of tensors of which one must be saved beside that model's encoder
    files: tuple[str, ...] = ()  # fields of Config that name a file or are None
    numbered: bool = False  # `Key.index` must number the data set's `Context.images` images
    period: int = 0  # epochs after which an image's views repeat; 0: never
    drops_tokens: bool = False  # the backbone must be able to leave tokens out ...
    plain: bool = False  # ... or embed each patch by itself ...
    # ... or have these options (of `backbones.options`); each with what it lets the backbone do, in words
    backbone_options: Mapping[str, str] = field(default_factory=dict)
    batch: int = 1  # images a step, at the least ...
    why_batch: str = ""  # ... and what compares them


class Tokenizer(Protocol):
    """Turns texts into rows of token numbers: start, text, end, zeros."""

    vocabulary: int  # token numbers run from 0 to this, exclusive
    context: int  # tokens a row
    end: int  # the token that ends a text
    merges: np.ndarray  # int64 [m, 2]: what rebuilds it (data/text_tokenizer.py)
    origin: str  # where the merges are from, in words
    repaired: bool  # texts are repaired by ftfy first

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "b l"]:
        """Texts that are too long are cut and ended."""
        ...

    def fits(self, text: str) -> bool:
        """Is it short enough not to be cut?"""
        ...

    def unrepaired(self, texts: Sequence[str]) -> list[str]:
        """A line about texts that should be repaired and are not; none if there are none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """Facts of the run that a method is built with, beside its configuration."""

    image_size: int  # pixels along a side that the network will see
    images: int = 1  # in the data set; `Key.index` counts them
    classes: tuple[str, ...] = ()  # name of each label
    several: bool = False  # may an image have several labels (Batch.label_sets)?
    # of the loss, to make up for classes of different sizes (train/class_weights.py)
    class_weights: tuple[float, ...] | None = None
    start: Extras = NO_EXTRAS  # what lies beside the weights that the run starts from
    preprocess: Preprocess | None = None  # how views are normalised
    model: Trained | None = None  # the model that `Needs.model` names
    tokenizer: Tokenizer | None = None  # of `Batch.text`
    tracks: Tracks | None = None  # of all training images, where the method takes frames or fields


@dataclass(frozen=True, kw_only=True)
class HealthSignal:
    """A metric of a method that shows trouble when it exceeds a limit (`pretraining.health.judge`).

    kind "verdict": then it decides the verdict, after the features themselves. kind "remedy": then its remedy
    is given if the features have collapsed. Signals are tried in order; one whose metric is missing is
    skipped.
    """

    kind: Literal["verdict", "remedy"]
    metric: str  # name in StepOutput.metrics
    limit: float  # the value above which it shows trouble ...
    of: str | None = None  # ... as a share of this metric
    level: Literal["warn", "bad"] = "bad"
    text: str = ""  # what is seen; {value} and {of} stand for the metrics
    remedy: str


class Method(nn.Module):
    """All that the engine knows of any method."""

    encoder: Backbone  # the one that gradients train

    def export_encoder(self) -> Backbone:
        """The one that is evaluated and exported: the teacher's, if the paper evaluates the teacher."""
        return self.encoder

    def repeated(self) -> list[nn.Module]:
        """The repeated blocks of all its backbones, including a teacher's."""
        return [block for m in self.modules() if isinstance(m, Backbone) for block in m.repeated()]

    def extras(self) -> Extras:
        """What is saved beside the exported encoder."""
        return NO_EXTRAS

    def health_signals(self) -> Sequence[HealthSignal]:
        """Which of its metrics show that it does not learn, and what to do about it."""
        return ()

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """Loss of one micro-batch; changes no state but statistics of batch norms."""
        raise NotImplementedError

    def after_step(self, clock: Clock, carries: Sequence[Any]) -> None:
        """State updates after the optimizer's step (EMA, centres); carries: one of each micro-batch."""

    def groups(self) -> Iterable[ParamGroup]:
        """What is trained, and how; parameters in no group are frozen."""
        raise NotImplementedError

    def reconstruct(self, images: Float[Tensor, "b c h w"], key: Key) -> Reconstruction | None:
        """For the report: normalised images as the method reconstructs them; None if it does not.

        A method that overrides this is built for the report without `Context.model` and `Context.preprocess`.
        """
        return None
