"""The picture that a class or a feature answers to most: ascent on its logit [Simonyan 2013, 1312.6034].

The picture is learned as the coefficients of its Fourier transform, scaled as in photographs, in axes in
which their colours are nearly uncorrelated, and seen shifted, scaled and turned at every step, without which
the ascent ends in high-frequency noise [Olah 2017, distill.pub/2017/feature-visualization].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from omma.core.progress import Progress
from omma.core.protocols import Preprocess
from omma.data.batches.preprocess import shorter_side
from omma.inspection.kinds import Explanation, Kind, Picture, Rows, Subject
from omma.inspection.shown import limits
from omma.inspection.target import number, pooled
from omma.weights import Model
from omma.weights.classifier import Classifier

MOST = 8  # classes of a page
FEATURES = 4  # where none is named
SURE = 0.9  # the probability from which a class counts as found
# Rows: intensity, red minus blue, green minus magenta [Ohta 1980, Color information for region segmentation].
OHTA = ((1 / 3, 1 / 3, 1 / 3), (1 / 2, 0.0, -1 / 2), (-1 / 4, 1 / 2, -1 / 4))
# Deviations along them in 300 photographs of Flickr8k, values in [0, 1]; correlations are at most .08
DEVIATIONS = (0.233, 0.090, 0.035)
STEEP = 4.0  # 1 / the slope of the sigmoid at 0, so that the start varies as photographs do
START = 0.1  # deviation of the first coefficients, which are 1 in a photograph


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """How a picture is searched for."""

    steps: int = 128
    rate: float = 0.05  # of Adam, on coefficients that are of size 1 in photographs
    variation: float = 1e-3  # times the total variation, the sum of |differences| of neighbouring pixels
    shift: float = 1 / 16  # at most, of the side
    scale: tuple[float, float] = (0.9, 1.1)
    turn: float = 10.0  # degrees at most
    views: int = 1  # of each picture a step

    def __post_init__(self) -> None:
        if self.steps < 1 or self.views < 1:
            raise ValueError(f"steps={self.steps}, views={self.views}: both must be at least 1")


@dataclass(frozen=True)
class Maximised:
    """A picture and what the model makes of it, through its own preprocessing."""

    name: str
    picture: np.ndarray  # [h, w, c] in the units of the model's images: uint8 where these are 8-bit
    value: float  # the logit, or the pooled feature along the direction
    probability: float | None = None  # calibrated; None without a classifier
    first: str = ""  # the likeliest class

    @property
    def found(self) -> bool:
        """Is the model sure of its class?"""
        return self.probability is not None and self.probability > SURE


def of_classes(
    model: Model,
    classes: Sequence[str],
    settings: Ascent | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Maximised]:
    """A picture for each of these classes of the model's classifier, by the gradient of its logit.

    The logit, not the probability, which also rises where other classes fall [Simonyan 2013, section 2].
    classes: names, or parts of names that fit one class. Raises ValueError without a classifier, and for
    unknown names.
    """
    classifier = model.classifier
    if classifier is None:
        raise ValueError("this model has no classifier, so no class has an image: give features instead")
    numbers = [number(classifier.classes, name) for name in classes]
    if classifier.distilled is None:
        reader = classifier
    else:  # the logits of two heads together are logarithms of probabilities: the first one's stand for both
        reader = Classifier(classes=classifier.classes, weight=classifier.weight, bias=classifier.bias)

    def value(pooled: Tensor) -> Tensor:
        logits = reader.logits(pooled)
        own = torch.tensor(numbers, device=logits.device).repeat(len(logits) // len(numbers))
        return logits.gather(1, own[:, None])[:, 0]

    pictures = _ascend(model, len(numbers), value, settings or Ascent(), seed, progress)
    made = [_picture(each, model.preprocess) for each in pictures]
    pooled = torch.from_numpy(model.embed(made))
    logits = reader.logits(pooled)
    answers = model.classify(made)
    return [
        Maximised(
            name=classifier.classes[k],
            picture=picture,
            value=float(logits[row, k]),
            probability=float(answers.probabilities[row, k]),
            first=answers.names[row],
        )
        for row, (k, picture) in enumerate(zip(numbers, made, strict=True))
    ]


def of_directions(
    model: Model,
    directions: Float[np.ndarray, "t d"],
    names: Sequence[str],
    settings: Ascent | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Maximised]:
    """A picture for each direction of the pooled feature, which are made of length 1."""
    if directions.ndim != 2 or directions.shape[1] != model.encoder.dim:
        raise ValueError(
            f"directions {directions.shape}: the model's features have {model.encoder.dim} numbers"
        )
    if not (np.linalg.norm(directions, axis=1) > 0).all():
        raise ValueError("a direction is zero, which no picture can follow")
    unit = F.normalize(torch.from_numpy(np.asarray(directions, np.float32)), dim=1)

    def value(pooled: Tensor) -> Tensor:
        return (pooled.float() * unit.to(pooled.device).repeat(len(pooled) // len(unit), 1)).sum(1)

    pictures = _ascend(model, len(unit), value, settings or Ascent(), seed, progress)
    made = [_picture(each, model.preprocess) for each in pictures]
    reached = (torch.from_numpy(model.embed(made)) * unit).sum(1)
    return [Maximised(name, picture, float(v)) for name, picture, v in zip(names, made, reached, strict=True)]


# ---------------------------------------------------------------- the ascent
def _ascend(
    model: Model,
    n: int,
    value: Callable[[Tensor], Tensor],
    settings: Ascent,
    seed: int,
    progress: Progress | None,
) -> Float[Tensor, "n c s s"]:
    """Pictures in [0, 1] for which `value` of the pooled features, [views x n], is largest."""
    preprocess, first = model.preprocess, next(model.encoder.parameters())
    side = shorter_side(preprocess)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, preprocess.channels, side, side // 2 + 1, 2, generator=generator)
    spectrum = (START * drawn).to(first.device).requires_grad_()
    optimizer = torch.optim.Adam([spectrum], lr=settings.rate)
    for step in range(settings.steps):
        x = pixels(spectrum, side)
        seen = torch.cat([_view(x, preprocess.size, settings, generator) for _ in range(settings.views)])
        pooled = model.encoder(preprocess.normalise(seen).to(first.dtype)).pooled
        gain = value(pooled).sum() / settings.views - settings.variation * total_variation(x)
        (spectrum.grad,) = torch.autograd.grad(-gain, spectrum)
        optimizer.step()
        if progress:
            progress(step + 1, settings.steps)
    with torch.no_grad():
        return pixels(spectrum, side).cpu()


def pixels(spectrum: Float[Tensor, "n c s r 2"], side: int) -> Float[Tensor, "n c s s"]:
    """Values in [0, 1] from coefficients of size 1, as in photographs: amplitude falls as 1 / frequency."""
    rows, columns = torch.fft.fftfreq(side), torch.fft.rfftfreq(side)
    frequency = (rows[:, None] ** 2 + columns**2).sqrt().clamp(min=1 / side)
    scale = 1 / frequency
    scale = (scale / scale.square().mean().sqrt() / 2**0.5).to(spectrum)
    values = torch.fft.irfft2(
        torch.view_as_complex(spectrum * scale[..., None]), s=(side, side), norm="ortho"
    )
    if spectrum.shape[1] == 3:
        to_colours = torch.linalg.inv(torch.tensor(OHTA)) * (STEEP * torch.tensor(DEVIATIONS))
        values = torch.einsum("nkhw,ck->nchw", values, to_colours.to(values))
    return values.sigmoid()


def total_variation(images: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """The sum of absolute differences of neighbouring pixels."""
    down, right = images[..., 1:, :] - images[..., :-1, :], images[..., 1:] - images[..., :-1]
    return down.abs().sum() + right.abs().sum()


def _view(
    images: Float[Tensor, "n c s s"], size: int, settings: Ascent, generator: torch.Generator
) -> Float[Tensor, "n c size size"]:
    """The centre, shifted, scaled and turned at random, each image in its own way; edges are mirrored."""
    n, share = len(images), size / images.shape[-1]
    draws = torch.rand(4, n, generator=generator) * 2 - 1
    low, high = settings.scale
    factor = share / ((low + high) / 2 + draws[0] * (high - low) / 2)
    angle = torch.deg2rad(settings.turn * draws[1])
    cos, sin = angle.cos() * factor, angle.sin() * factor
    shift = 2 * settings.shift * draws[2:]
    rows = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = F.affine_grid(rows.to(images), [n, images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _picture(image: Float[Tensor, "c s s"], preprocess: Preprocess) -> np.ndarray:
    """Values in [0, 1] as an image [s, s, c] in the units of the model's images, rounded where those are."""
    low, high = (np.array(ends, np.float64) for ends in (preprocess.low, preprocess.high))
    raw = low + image.permute(1, 2, 0).double().numpy() * (high - low)
    kind = {255.0: np.uint8, 65535.0: np.uint16}.get(preprocess.full_scale or 0.0)
    if kind is None:
        return raw.astype(np.float32)
    return raw.round().clip(0, np.iinfo(kind).max).astype(kind)


# ---------------------------------------------------------------- the kind
def explain(subject: Subject) -> Explanation:
    """The image of the class asked for, or of each image's likeliest; without a classifier, of features.

    Options: "ascent" (`Ascent`); "features", numbers of the pooled feature, by default those that these
    images raise most.
    """
    settings = subject.options.get("ascent") or Ascent()

    def progress(done: int, total: int) -> None:
        subject.progress("ascent", done, total)

    if subject.model.classifier is not None and not subject.options.get("features"):
        names = list(dict.fromkeys(subject.target.names))[:MOST]
        made = of_classes(subject.model, names, settings, subject.seed, progress)
        sure = sum(each.found for each in made)
        of = f"the logit of each class; of {len(made)}, {sure} are found: their probability is above {SURE}"
        texts = [f"{each.name}: p = {each.probability:.3f}, logit {each.value:.3g}" for each in made]
    else:
        numbers = subject.options.get("features") or _largest(subject)
        units = np.eye(subject.encoder.dim, dtype=np.float32)[list(numbers)]
        made = of_directions(
            subject.model, units, [f"feature {k}" for k in numbers], settings, subject.seed, progress
        )
        of = "each number of the pooled feature"
        texts = [f"{each.name}: {each.value:.3g}" for each in made]
    caption = (
        f"Pictures made from noise to raise {of}. The numbers are those of the pictures as they are here, "
        "in whole levels, through the model's own preprocessing. They show what suffices for the answer, not "
        "all that the class can look like."
    )
    cells = []
    for each, text in zip(made, texts, strict=True):
        low, high = (np.array(ends) for ends in (subject.model.preprocess.low, subject.model.preprocess.high))
        values = (each.picture - low) / (high - low)
        black, white = limits(values)
        cells.append(Picture(((values[..., :3] - black) / (white - black)).clip(0, 1), text))
    notes = [
        f"maximising images: {each.name} is not found (p = {each.probability:.2f}; {each.first} is likelier)"
        for each in made
        if each.probability is not None and not each.found and each.first != each.name
    ]
    arrays = {"class-max": np.stack([each.picture for each in made])}
    shows = Rows(("maximises", *[""] * (len(cells) - 1)), (tuple(cells),))
    return Explanation("Maximising images", caption, (shows,), arrays, tuple(notes))


def _largest(subject: Subject) -> list[int]:
    """The numbers of the pooled feature that stand out most over the images' own mean."""
    own = pooled(subject.model, subject.pixels).mean(0)
    return own.argsort(descending=True, stable=True)[:FEATURES].tolist()


KIND = Kind(name="class-max", explain=explain)
