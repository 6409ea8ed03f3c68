"""What every kind of explanation is given, and what it returns.

A kind is one file of this room with a `KIND`, and a line in `registry.py`; nothing else knows it. It computes
arrays; reporting/explain_page.py draws them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.progress import StageProgress
from omma.core.protocols import Backbone, Images
from omma.inspection.shown import shown
from omma.inspection.target import Target
from omma.weights import Model


def silent(what: str, done: int, total: int) -> None:
    """StageProgress that nobody follows."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, the images it is asked about, and the number that is to be explained."""

    model: Model  # on its device, in evaluation mode; its encoder is a copy that nobody else uses
    pixels: Float[Tensor, "n c h w"]  # prepared, on the model's device and in its precision
    target: Target  # the score of each image: a class's logit, or the likeness to the whole image
    paths: tuple[str, ...] = ()  # names of the images, for people
    gallery: Images | None = None  # other images, for kinds that look for examples
    class_name: str | None = None  # that was asked for; None: each image's likeliest class
    layers: tuple[int, ...] = ()  # that were asked for; () leaves the choice to the kind
    heads: tuple[int, ...] = ()
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)  # what else a kind of its own needs
    progress: StageProgress = silent

    @property
    def encoder(self) -> Backbone:
        return self.model.encoder

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the encoder's patches."""
        return self.encoder.grid(*self.size)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, as the network receives them."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @cached_property
    def batch(self) -> int:
        """Images a forward pass: 0.8 million pixels on a CPU, 16 times that elsewhere."""
        pixels = 802_816 * (1 if self.pixels.device.type == "cpu" else 16)
        return max(1, min(512, pixels // (self.size[0] * self.size[1])))

    @cached_property
    def shown(self) -> Float[np.ndarray, "n h w c"]:
        """The images as people see them, in [0, 1]: what is left of them after resizing and cropping."""
        return shown(self.pixels, self.model.preprocess)

    def with_options(self, **options: Any) -> "Subject":
        """The same with further options."""
        return replace(self, options={**self.options, **options})

    def with_model(self, model: Model) -> "Subject":
        """The same question to another model, such as one with random weights."""
        return replace(self, model=model, target=self.target.for_model(model, self.pixels))

    def only(self, rows: Sequence[int]) -> "Subject":
        """The same for some of the images."""
        chosen = torch.as_tensor(list(rows), device=self.pixels.device)
        paths = tuple(self.paths[i] for i in rows) if self.paths else ()
        return replace(self, pixels=self.pixels[chosen], target=self.target.only(rows), paths=paths)


@dataclass(frozen=True)
class Heat:
    """A map [h, w] of any resolution, to be drawn over an image with the scale of its colours below it.

    values: from 0, or with `signed` on both sides of 0; NaN is not drawn. top: the value at the end of the
    scale; None: the map's largest. text: stands below the picture, before the scale. unit: after its numbers.
    """

    values: Float[np.ndarray, "h w"]
    image: int  # number of the image in `Subject.pixels` that it is drawn over
    text: str = ""
    unit: str = ""
    signed: bool = False
    top: float | None = None


@dataclass(frozen=True)
class Picture:
    """A picture [h, w, c] in [0, 1]; NaN is grey. mark: right, wrong or neither; path: of its file."""

    values: Float[np.ndarray, "h w c"]
    text: str = ""
    mark: bool | None = None
    path: str = ""


@dataclass(frozen=True)
class Rows:
    """Pictures in rows under column heads."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Heat | Picture | None, ...], ...]


@dataclass(frozen=True)
class Figures:
    """A table of texts; the first column names its rows."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis: (name, x, y) each."""

    title: str
    lines: tuple[tuple[str, Sequence[float], Sequence[float]], ...]


@dataclass(frozen=True)
class Judged:
    """A sentence in plain words about `of`, for the top of the page; good: None is neither good nor bad."""

    of: str
    sentence: str
    good: bool | None = None
    reason: str = ""


@dataclass(frozen=True)
class Explanation:
    """What a kind has found: a section of the page, and the numbers behind it.

    caption: what is shown, how to read it, and what it cannot show. arrays: for Python, under names that
    begin with the kind's: "attention" [n, gh, gw]. notes: what the reader must know of this model and
    these images.
    """

    title: str
    caption: str
    shows: tuple[Rows | Figures | Curves, ...]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    judged: tuple[Judged, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of explanation; see the file's opening.

    explain: computes it. lacks: why this subject cannot have it, in words that end "...: <remedy>", or None.
    one_map: one map [n, h, w] an image, not negative, larger where the image matters more; a kind that has it
    can be tested (`sanity`, `faithfulness`) and compared with boxes. default: is it drawn where nothing is
    asked for?
    """

    name: str
    explain: Callable[[Subject], Explanation]
    lacks: Callable[[Subject], str | None] = lambda subject: None
    one_map: Callable[[Subject], Float[np.ndarray, "n h w"]] | None = None
    default: bool = False
