"""What the layers of omma promise each other: samples, views, batches, backbones, methods."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


# ---------------------------------------------------------------- samples
class BadImage(ValueError):
    """One file that cannot be used, with the reason in a few words; it never ends a run."""


@runtime_checkable
class Images(Protocol):
    """An indexed collection of images; nothing is decoded until `read`.

    Must pickle cheaply (data-loading workers receive it) and hold under 200 bytes a path.
    """

    channels: int  # what `read` returns, for every image
    labels: np.ndarray | None  # int64 [n], -1 where unlabelled; None if nothing is labelled
    classes: tuple[str, ...]  # name of each label; () without labels
    splits: np.ndarray | None  # str [n]: "train" | "test" (val and valid count as "test"); None if unsplit

    def __len__(self) -> int: ...

    def path(self, i: int) -> str:
        """What a person would call image i: its path relative to the source."""
        ...

    def read(self, i: int, at_least: int | None = None) -> np.ndarray:
        """Decode image i to [h, w, channels], uint8 for 8-bit files, float32 with raw values otherwise.

        `at_least`: a shorter side of this many pixels is enough (JPEG is then decoded at reduced scale).
        Raises BadImage.
        """
        ...

    def subset(self, indices: np.ndarray) -> "Images":
        """The same collection restricted to `indices`, in that order."""
        ...


# ---------------------------------------------------------------- randomness
class Key(NamedTuple):
    """Where the random numbers of each image of a batch come from: (seed, epoch, index) and nothing else."""

    seed: int
    epoch: np.ndarray  # int64 [b]
    index: np.ndarray  # int64 [b]


# ---------------------------------------------------------------- views
@dataclass(frozen=True, kw_only=True)
class Colour:
    """Colour augmentation of one kind of crop; probabilities per image, applied in this order.

    Operations that need RGB (saturation, hue, grey) are left out on other channel counts.
    """

    brightness: float = 0.0  # factor uniform in [1 - x, 1 + x], never below 0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # shift uniform in [-x, x], in turns, x <= .5
    jitter_p: float = 0.0  # the four above, in this fixed order, together
    grey_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarise_p: float = 0.0  # invert values at or above .5


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Operations of one kind of crop, drawn for each image with replacement [Cubuk 2019, arXiv 1909.13719].

    The defaults are DeiT's (timm's `rand-m9-mstd0.5-inc1`, 15 operations). The one that needs RGB (colour) is
    left out on other channel counts.
    """

    count: int = 2  # operations drawn, applied one after the other ...
    p: float = 0.5  # ... each with this probability
    magnitude: float = 9.0  # how strong, of 10 ...
    deviation: float = 0.5  # ... and its normal deviation; cut to [0, 10]

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} of RandAugment: must be at least 1; None switches it off")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude={self.magnitude} of RandAugment: must lie in [0, 10]")


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One kind of random resized crop: `count` of them for every image."""

    count: int = 1
    size: int  # pixels, square
    scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.5  # horizontal
    augment: RandAugment | None = None  # before `colour`
    colour: Colour | None = None
    erase_p: float = 0.0  # after normalising: a rectangle of noise [Zhong 2017, arXiv 1708.04896]


class Batch(NamedTuple):
    """What a method is given."""

    views: tuple[Float[Tensor, "b v c s s"], ...]  # one tensor for each Crop of the plan, normalised
    key: Key
    labels: Int[Tensor, "b"] | None = None  # read by supervised methods only; -1 where unlabelled
    text: Int[Tensor, "b l"] | None = None  # tokens of one caption an image, read by methods of text only


# ---------------------------------------------------------------- networks
class Features(NamedTuple):
    pooled: Float[Tensor, "b d"]
    patches: Float[Tensor, "b n d"]
    grid: tuple[int, int]  # rows, columns of the patches; for a subset of kept tokens, of the whole image
    prefix: Float[Tensor, "b p d"] | None = None  # class token and its like, where there are any


class NoAttention(ValueError):
    """The network has no attention weights to look at."""


class Backbone(nn.Module):
    """An encoder in two halves, so that masking lives between them and not inside."""

    dim: int  # width of the features
    patch: int  # pixels of input for each feature, along a side
    channels: int  # input channels
    drops_tokens: bool  # can `tokenize` and `encode` work on a subset of the tokens?
    plain: bool = True  # is each patch embedded by itself, without a look at its neighbours?
    packs: bool = False  # does `encode_many` call each block once, for tokens of all lengths?
    distils: bool = False  # can it be built with a distillation token beside its class token?
    recompute: bool = (
        False  # are activations within blocks computed anew in the backward pass (ops/recompute)?
    )
    first_layers: tuple[str, ...] = ("patch_embed.proj.weight",)  # parameters that read the image's channels
    pool: str = "mean"  # what `pooled` is: "token" for a class token's feature
    prefix: int = 0  # tokens that stand before the patches in the last layer
    name: str  # as on the command line: "vit-ti/16"
    built_from: Mapping[str, Any]  # name, image size, channels and what was chosen beside them

    @property
    def token_dim(self) -> int:
        """Width of the tokens that `tokenize` gives."""
        return self.dim

    @property
    def token_patch(self) -> int:
        """Pixels of input for each of these tokens, along a side."""
        return self.patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of features of an image of this size; it is padded where it does not divide."""
        # no negative numbers: ONNX cuts their quotients towards zero
        return (height + self.patch - 1) // self.patch, (width + self.patch - 1) // self.patch

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Patch embeddings, without positions; only those numbered in `keep`, where given."""
        raise NotImplementedError

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        """Add positions and run the network; `keep` tells which tokens of the grid these are."""
        raise NotImplementedError

    def encode_many(
        self, batches: Sequence[tuple[Float[Tensor, "b n d"], tuple[int, int]]]
    ) -> list[Features]:
        """Encode token tensors of several lengths; a backbone that `packs` does so in one."""
        return [self.encode(tokens, grid) for tokens, grid in batches]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Features:
        return self.encode(self.tokenize(images), self.grid(*images.shape[-2:]))

    def attention(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b heads n m"]]:
        """Softmax weights of the asked layers, over all tokens of each (those before the patches first).

        Only the asked layers compute them. Negative numbers count from the last layer. A map of n tokens
        takes 4 heads n^2 bytes an image. Raises NoAttention, and ValueError for a layer that does not exist.
        """
        raise NoAttention(f"{self.name} has no attention to look at; a transformer has")

    def pooled_attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads n"]:
        """The last layer's attention to each patch: from the class token, or the mean over all patches."""
        (maps,) = self.attention(images)
        maps = maps[..., self.prefix :]
        return maps[:, :, 0] if self.pool == "token" else maps[:, :, self.prefix :].mean(2)

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Its parameters, those of the embedding first, then block by block, those after the last block last.

        One list where the network is not known to have layers.
        """
        return [list(self.parameters())]

    def repeated(self) -> list[nn.Module]:
        """Its blocks, called through their `forward` alone, which together hold nearly all its parameters.

        They are what can be spread over processes (`--shard`) and computed anew (`recompute`); [] where there
        are none.
        """
        return []

    def drop_nothing(self) -> None:
        """Turn stochastic depth off, in training too."""
        for module in self.modules():
            if isinstance(getattr(module, "drop_path", None), float):
                setattr(module, "drop_path", 0.0)  # noqa: B010 (to the type checker modules have no numbers)

    def spec(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this network: `backbones.build(**spec)`; noted by `build`."""
        return dict(self.built_from)


# ---------------------------------------------------------------- methods
@dataclass(frozen=True)
class Clock:
    """Where training is; every schedule is a pure function of it."""

    step: int  # optimizer steps done
    total: int  # steps of the whole run
    epoch: float  # passes over the images done
    epochs: float = 1.0  # passes of the whole run

    @property
    def progress(self) -> float:
        """Share of the run done, 0 to 1."""
        return min(self.step / max(self.total, 1), 1.0)


class StepOutput(NamedTuple):
    loss: Float[Tensor, ""]
    metrics: Mapping[str, Tensor]  # scalars worth plotting, detached
    carry: Any = None  # what after_step needs, one for each micro-batch


class Reconstruction(NamedTuple):
    """Images as a method reconstructs them, for its report."""

    images: Float[Tensor, "b c h w"]  # normalised as what was given
    hidden: Bool[Tensor, "b h w"] | None  # pixels that the encoder did not see; None: it saw all of them
    caption: str  # what is shown, in a sentence


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters that are trained alike."""

    label: str
    params: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    decay: bool = True
    frozen_until: float = 0.0  # in epochs
    frozen_share: float = 0.0  # frozen until this share of the run is done, too


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a method is trained with; a method's file offers `paper` and `small` recipes."""

    config: Any  # the method's Config
    batch: int
    lr: float  # peak, for this batch size
    lr_end: float = 1e-6
    warmup: float = 0.1  # share of the run
    weight_decay: float = 0.05
    weight_decay_end: float | None = None  # cosine from weight_decay; None: constant
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 3.0  # global gradient norm
    drop_path: float = 0.0
    encoder: Mapping[str, Any] = field(default_factory=dict)  # options of a ViT that the method wants

    def __post_init__(self) -> None:
        for name in ("batch", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup}: must be a share of the run in [0, 1)")


class Extras(NamedTuple):
    """What is kept beside an encoder because something else can use it: a classifier, a tokenizer's codes."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = MappingProxyType({})  # what JSON can hold: names of classes, numbers of heads


NO_EXTRAS = Extras({})


class Trained(Protocol):
    """A trained model that a method learns from."""

    encoder: Backbone
    preprocess: "Preprocess"
    extras: Extras


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method cannot do without beside images; it is refused before the first of them is decoded.

    A method's file says it in `needs(config)`, and nothing if any images and any backbone will do.
    """

    labels: bool = False
    text: bool = False
    model: str | None = None  # field of Config that names a trained model to learn from ...
    kind: str = ""  # ... and what that is, with where to get one: "a tokenizer (train one: ...)"
    beside: tuple[str, ...] = ()  # tensors that must have been kept beside its encoder, one of them
    files: tuple[str, ...] = ()  # fields of Config that name a file, where they are not None
    drops_tokens: bool = False  # must the backbone be able to leave tokens out ...
    plain: bool = False  # ... or embed each patch by itself ...
    distils: bool = False  # ... or carry a distillation token beside the class token (option `distilled`)?
    batch: int = 1  # images a step, at the least ...
    why_batch: str = ""  # ... and what compares them


class Tokenizer(Protocol):
    """Turns texts into rows of numbers: start, text, end, zeros."""

    vocabulary: int  # numbers run from 0 to this, exclusive
    context: int  # numbers a row
    end: int  # the number that ends a text
    merges: np.ndarray  # int64 [m, 2]: what rebuilds it (data/text_tokenizer.py)
    origin: str  # where those are from, in words

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "b l"]:
        """A text that is too long is cut before its end."""
        ...

    def fits(self, text: str) -> bool:
        """Does nothing of it have to be cut?"""
        ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a method is told of its run beside its configuration."""

    image_size: int  # pixels along a side that the network will see
    images: int = 1  # in the data set; `Key.index` counts them
    classes: tuple[str, ...] = ()  # what the labels mean
    preprocess: "Preprocess | None" = None  # how the views were normalised
    model: Trained | None = None  # what `Needs.model` names
    tokenizer: Tokenizer | None = None  # what made `Batch.text`, for methods of text


class Method(nn.Module):
    """All that the engine knows of any method."""

    encoder: Backbone  # the one that gradients train

    def export_encoder(self) -> Backbone:
        """The one that is evaluated and exported: the teacher's, where the paper keeps the teacher's."""
        return self.encoder

    def repeated(self) -> list[nn.Module]:
        """The repeated blocks of all its backbones, a teacher's too."""
        return [block for m in self.modules() if isinstance(m, Backbone) for block in m.repeated()]

    def extras(self) -> Extras:
        """What is kept beside it."""
        return NO_EXTRAS

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """Loss of one micro-batch; changes no state, batch-norm statistics aside."""
        raise NotImplementedError

    def after_step(self, clock: Clock, carries: Sequence[Any]) -> None:
        """State updates that follow the optimizer's step: EMA, centres."""

    def groups(self) -> Iterable[ParamGroup]:
        """What is trained, and how; parameters in no group are frozen."""
        raise NotImplementedError

    def reconstruct(self, images: Float[Tensor, "b c h w"], key: Key) -> Reconstruction | None:
        """For the report: normalised images as the method reconstructs them; None if it does not.

        A method that overrides this is built for the report without `Context.model` and `Context.preprocess`.
        """
        return None


# ---------------------------------------------------------------- a trained model's input
@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From a decoded image [h, w, c] to the network's input [c, size, size].

    Raw values become (value - low) / (high - low), clipped to [0, 1], then (x - mean) / std. The shorter side
    is resized to size / crop_share (bicubic, antialiased) and the centre is cut.
    """

    size: int
    channels: int
    low: tuple[float, ...]  # per channel, in raw units: 0 for 8-bit
    high: tuple[float, ...]  # 255 for 8-bit
    mean: tuple[float, ...]  # after scaling to [0, 1]
    std: tuple[float, ...]
    crop_share: float = 1.0

    def normalise(self, images: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """(x - mean) / std on values in [0, 1]."""
        mean, std = (torch.tensor(v, device=images.device, dtype=images.dtype) for v in (self.mean, self.std))
        return (images - mean[:, None, None]) / std[:, None, None]

    def translate(self, images: Float[Tensor, "*b c h w"], other: "Preprocess") -> Float[Tensor, "*b c h w"]:
        """Images normalised by this, normalised as `other` wants: its network sees the same raw values.

        raw = low + (high - low)(mean + std y) for both. What lies beyond other's range is clipped where the
        ranges differ. Raises ValueError where the numbers of channels do.
        """
        if self.channels != other.channels:
            raise ValueError(
                f"images have {self.channels} channels, the trained model was made for {other.channels}: "
                "choose one that was made for such images"
            )
        raw = [
            (low + (high - low) * mean, (high - low) * std)
            for p in (self, other)
            for low, high, mean, std in zip(p.low, p.high, p.mean, p.std, strict=True)
        ]
        pairs = list(zip(raw[: self.channels], raw[self.channels :], strict=True))

        def each(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), device=images.device, dtype=images.dtype)[:, None, None]

        factor = each(scale / to for (_, scale), (_, to) in pairs)
        moved = images * factor + each((start - to) / scale for (start, _), (to, scale) in pairs)
        if self.low == other.low and self.high == other.high:
            return moved
        ends = zip(other.mean, other.std, strict=True)
        least, most = zip(*((-mean / std, (1 - mean) / std) for mean, std in ends), strict=True)
        return moved.clamp(each(least), each(most))
