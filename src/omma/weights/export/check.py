"""Compare the features of an exported network, run by another library, with omma's on the same images."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.errors import line
from omma.core.protocols import Backbone, Features, Preprocess
from omma.weights.classifier import Classifier

Sizes = Literal["any", "multiples", "fixed"]
# images [b, c, h, w] to pooled [b, d], patches [b, n, d] and, of a network with its classifier, logits [b, k]
Run = Callable[[Tensor], tuple[Tensor, ...]]


class Reopened(NamedTuple):
    """An exported network that another library has loaded."""

    run: Run
    sizes: Sizes  # image sizes at which it must agree with omma: any, multiples of the patch, or one
    notes: tuple[str, ...] = ()  # what its users must know
    pooling: str = ""  # the expression for omma's pooled feature, where a model card names it


class Comparison(NamedTuple):
    """The largest difference between what is exported and omma's: of features, and of logits if there are."""

    difference: float  # of features, absolute
    scale: float  # largest absolute feature of omma's
    images: int  # in the largest batch
    sizes: tuple[tuple[int, int], ...]  # heights and widths in pixels
    logits: tuple[float, float] = (0.0, 0.0)  # difference and scale of the logits

    def within(self, limit: float) -> bool:
        """Are the differences at most `limit` times their scale? False for NaN."""
        return all(d <= limit * scale for d, scale in ((self.difference, self.scale), self.logits))


@torch.no_grad()
def compare(
    encoder: Backbone,
    reopened: Reopened,
    batches: Iterable[Float[Tensor, "b c h w"]],
    classifier: Classifier | None = None,
) -> Comparison:
    """Compare pooled and patch features of batches of normalised images, and logits if they are exported.

    Raises ValueError if the exported network fails, or its features have another shape.
    """
    worst, largest_batch, sizes = [(0.0, 0.0)] * 2, 0, {}  # difference and scale of features, of logits
    for images in batches:
        own = outputs(encoder(images), classifier)
        height, width = images.shape[-2:]
        try:
            exported = reopened.run(images)
        except Exception as error:  # other libraries raise errors of many types
            raise ValueError(
                f"the exported {encoder.name} cannot be run at {height}x{width} px: {line(error)}"
            ) from error
        for i, (a, b) in enumerate(zip(own[: max(2, len(exported))], exported, strict=True)):
            if a.shape != b.shape:
                raise ValueError(
                    f"{encoder.name} at {height}x{width} px: exported features are {tuple(b.shape)}, "
                    f"omma's {tuple(a.shape)}"
                )
            if not a.isfinite().all():
                raise ValueError(f"features of {encoder.name} are not finite: its weights are damaged")
            # unlike Python's max, torch's propagates NaN
            difference, scale = worst[i > 1]
            difference = torch.stack([torch.tensor(difference), (a - b).abs().max()]).max().item()
            worst[i > 1] = difference, max(scale, a.abs().max().item())
        largest_batch = max(largest_batch, len(images))
        sizes[height, width] = True
    return Comparison(*worst[0], largest_batch, tuple(sizes), worst[1])


def outputs(features: Features, classifier: Classifier | None) -> tuple[Tensor, ...]:
    """Pooled and patch features, and the classifier's logits, not divided by its temperature."""
    own = (features.pooled, features.patches)
    return own if classifier is None else (*own, classifier.logits(features.pooled, features.prefix))


def left_out(library: str, why: str) -> str:
    """A note on a classifier that the library cannot have."""
    return f"without the classifier, since {library} {why}: onnx and torch have it"


def full_scale(preprocess: Preprocess) -> float:
    """What other libraries divide values by: white; 1 for raw measurements."""
    return preprocess.full_scale or 1.0


def in_full_scale(preprocess: Preprocess) -> tuple[list[float], list[float]]:
    """Mean and standard deviation for values / `full_scale` that also do (value - low) / (high - low)."""
    white = full_scale(preprocess)
    channels = zip(preprocess.low, preprocess.high, preprocess.mean, preprocess.std, strict=True)
    means, stds = [], []
    for low, high, mean, std in channels:
        means.append((low + mean * (high - low)) / white)
        stds.append(std * (high - low) / white)
    return means, stds


def range_note(preprocess: Preprocess) -> tuple[str, ...]:
    """A note for other images than 8-bit ones, which other libraries assume; empty for these."""
    if set(preprocess.low) == {0.0} and set(preprocess.high) == {255.0}:
        return ()
    white = preprocess.full_scale
    values = f"values / {white:g}" if white else "raw values"
    return (f"mean and std are for {values}; omma also clips values to its training range",)
