"""CoOp: learn the context of a class's name in a prompt [Zhou 2021, arXiv 2109.01134].

Both towers of a CLIP-like model stay as they are. M vectors in the place of words are learned, by the
cross-entropy of the model's own logits, s cos(image, prompt of the class) [eq. 2]. The images' features are
computed once, so there is no augmentation (the paper's code crops and mirrors at random).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omma.adaptation import named
from omma.backbones.layers import prompts
from omma.backbones.layers.prompts import POSITIONS, Learned
from omma.backbones.layers.text import Paired
from omma.core.checks import above_zero, one_of
from omma.core.protocols import Images
from omma.core.words import count
from omma.data.sources.labels import remedy
from omma.evaluation.job import text_reader
from omma.evaluation.zeroshot import TEMPLATE, TextReader
from omma.features.extract import extract
from omma.weights import Model

DEVIATION = 0.02  # of a random context's first values
LR, SCALE = 0.002, 100.0  # the paper's, and the scale of CLIP's cosines, by which gradients grow
WARM_UP = 1e-5  # the learning rate of the first epoch
MOMENTUM, DECAY = 0.9, 5e-4  # of the paper's code
EPOCHS = {1: 50, 4: 100, 16: 200}  # up to so many images a class; the last one for more, too [section 4.1]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's training [section 4.1]; its context is 16 vectors that start at random.

    Here it starts from words: a text tower that has read short captions alone does not read a class's name
    behind 16 random vectors, and learns nothing then (docs/clip.md).
    """

    words: str = "a photo of a"  # whose embeddings the context starts from
    tokens: int = 0  # M: so many vectors that start at random, instead of words; 0: as many as `words` has
    per_class: bool = False  # a context for each class ("class-specific", CSC); no use for new classes
    position: str = "end"  # of the class's name: "end" or "middle"
    lr: float | None = None  # None: .002 for CLIP's scale of 100, more for a smaller one, in proportion
    batch: int = 32
    epochs: int | None = None  # None: 50, 100 or 200, by the images a class

    def __post_init__(self) -> None:
        one_of("adapt.position", self.position, POSITIONS)
        above_zero(self, "batch", *(name for name in ("lr", "epochs") if getattr(self, name) is not None))
        if self.tokens < 0:
            raise ValueError(f"adapt.tokens={self.tokens}: must be at least 0 (start from words)")


class Progress(NamedTuple):
    """Of the training so far."""

    step: int
    steps: int
    loss: float


class Result(NamedTuple):
    """What was learned, and how."""

    learned: Learned
    epochs: int
    steps: int
    loss: float  # on the images that it was learned from ...
    loss_before: float  # ... and with "a photo of a {}." instead
    seconds: float

    def notes(self) -> list[str]:
        """What was done, in words."""
        vectors = count(self.learned.context.shape[-2], "learned vector")
        own = " for each class" if self.learned.classes else ""
        said = (
            f"CoOp: {vectors}{own} around the class's name, {self.epochs} epochs, {self.steps:,} steps, "
            f"{self.seconds:.0f} s"
        )
        figures = f"{self.loss:.2f}, {TEMPLATE!r} {self.loss_before:.2f}"
        if self.loss < self.loss_before:
            return [f"{said}; cross-entropy on its own images {figures}"]
        return [
            said,
            f"CoOp gained nothing on its own images, where its cross-entropy is {figures}: train longer, "
            "start from words (--adapt.words), or learn fewer vectors (--adapt.tokens)",
        ]


def learn(
    paired: Paired,
    scale: float,
    images: Float[np.ndarray, "n o"],
    labels: Int[np.ndarray, "n"],
    classes: Sequence[str],
    config: Config,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    seconds: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Learn a context from images' unit vectors (`Paired.images`) and their labels, rows of `classes`.

    scale: of the cosines, the model's exp(logit_scale). seconds: a budget; fewer epochs are trained if those
    of `config` would take longer. Raises ValueError for a class's name that is too long.
    """
    start = time.monotonic()
    generator = torch.Generator().manual_seed(seed)
    tower = paired.tower.to(device).eval().requires_grad_(False)
    context = _start(paired, config, len(classes), generator).to(device).requires_grad_()
    filled = prompts.slots(paired, classes, context.shape[-2], config.position).to(device)
    vectors, targets = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    optimizer = torch.optim.SGD([context], lr=WARM_UP, momentum=MOMENTUM, weight_decay=DECAY)
    epochs, lr = config.epochs or _epochs(labels), config.lr or LR * SCALE / scale
    batches = max(1, len(labels) // config.batch)  # of an epoch; the last, incomplete one is left out
    step, epoch, trained_since = 0, 0, time.monotonic()
    while epoch < epochs:
        optimizer.param_groups[0]["lr"] = rate(epoch, epochs, lr)
        order = torch.randperm(len(labels), generator=generator).to(device)
        for rows in order.split(config.batch)[:batches]:
            logits = scale * vectors[rows] @ prompts.features(tower, filled, context).T
            loss = F.cross_entropy(logits, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if progress:
                progress(Progress(step, epochs * batches, loss.item()))
        epoch += 1
        if seconds is not None and epoch == 1:
            took = time.monotonic() - trained_since
            epochs = max(2, min(epochs, int((seconds - (time.monotonic() - start)) / took) + 1))
    learned = Learned(context.detach().cpu(), config.position, tuple(classes) if config.per_class else ())

    def loss_of(reader: TextReader) -> float:
        logits = scale * images @ reader.vectors(classes, device).T
        return F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()

    losses = loss_of(TextReader(paired, learned=learned)), loss_of(TextReader(paired))
    return Result(learned, epochs, step, *losses, time.monotonic() - start)


def fit(
    model: Model,
    images: Images,
    config: Config,
    *,
    name: str = "model",
    merges: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    cache: Path | None = None,
    seconds: float | None = None,
    extracted: Callable[[int, int], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Model, Result]:
    """The model with a classifier of `images`' classes, whose names are read in a learned context.

    Images without a label, and those that cannot be read, are left out; a class without images has the vector
    of its name, too. The context is kept beside the encoder: `named.with_names` makes a classifier of other
    classes from it. name: of the model, for messages. merges: a file with the tokenizer's, if the model does
    not hold them. cache, precision: of the images' features. extracted: images done, images in total.
    Raises ValueError for a model without text tower, images without labels, and as `learn`.
    """
    reader = text_reader(model, name, merges=merges)
    scale = named.scale_of(model.extras.tensors, name)
    rows = np.flatnonzero(images.labels >= 0) if images.labels is not None else np.zeros(0, np.int64)
    if images.labels is None or not len(rows):
        raise ValueError(f"{getattr(images, 'source', 'images')} has no labels: {remedy(images)}")
    device = torch.device(device)
    features = extract(
        model.encoder, images.subset(rows), model.preprocess, device, precision,
        cache=cache, model_digest=None if cache is None else model.digest, progress=extracted,
    )  # fmt: skip
    result = learn(
        reader.paired, scale, reader.paired.images(features.vectors), images.labels[rows[features.indices]],
        images.classes, config, seed=seed, device=device, seconds=seconds, progress=progress,
    )  # fmt: skip
    reader = replace(reader, learned=result.learned)
    return named.with_names(model, reader, images.classes, name, device), result


def rate(epoch: int, epochs: int, lr: float) -> float:
    """The learning rate: constant and tiny in the first epoch, then a cosine, as in the paper's code."""
    return WARM_UP if epoch == 0 else lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def _epochs(labels: Int[np.ndarray, "n"]) -> int:
    shots = int(np.bincount(labels).max())
    return next((epochs for most, epochs in EPOCHS.items() if shots <= most), max(EPOCHS.values()))


def _start(paired: Paired, config: Config, classes: int, generator: torch.Generator) -> Tensor:
    """The context before the first step: the words' embeddings, or small random numbers."""
    tower, tokenizer = paired.tower, paired.tokenizer
    assert tokenizer is not None
    if config.tokens:
        shape = (classes,) * config.per_class + (config.tokens, tower.token_embed.embedding_dim)
        return DEVIATION * torch.randn(shape, generator=generator)
    ids = tokenizer.encode(config.words)
    if not ids:
        raise ValueError(f"adapt.words={config.words!r}: give words to start from, such as 'a photo of a'")
    weight = tower.token_embed.weight
    context = weight[torch.tensor(ids, device=weight.device)].detach().float().cpu()
    return context.repeat(classes, 1, 1) if config.per_class else context.clone()
