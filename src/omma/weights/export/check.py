"""Is what another library read the same network? Its features against omma's, on the same images."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.errors import line
from omma.core.protocols import Backbone, Preprocess

Sizes = Literal["any", "multiples", "fixed"]
Run = Callable[[Tensor], tuple[Tensor, Tensor]]  # images [b, c, h, w] to pooled [b, d], patches [b, n, d]


class Reopened(NamedTuple):
    """A network that another library has read, seen as omma sees its own."""

    run: Run
    sizes: Sizes  # images that it reads as omma does: any, multiples of the patch, those of one size
    notes: tuple[str, ...] = ()  # what its user must know


class Compared(NamedTuple):
    """How far another's features are from omma's."""

    difference: float  # the largest, absolute
    scale: float  # the largest feature, absolute
    images: int
    sizes: tuple[tuple[int, int], ...]  # height and width in pixels

    def within(self, limit: float) -> bool:
        """Is the difference at most this share of the scale? Not a number never is."""
        return self.difference <= limit * self.scale


@torch.no_grad()
def compare(encoder: Backbone, reopened: Reopened, batches: Iterable[Float[Tensor, "b c h w"]]) -> Compared:
    """Pooled and patch features of normalised images.

    Raises ValueError where the other's features have another shape or cannot be computed.
    """
    difference, scale, most, sizes = 0.0, 0.0, 0, {}
    for images in batches:
        ours = encoder(images)
        height, width = images.shape[-2:]
        try:
            theirs = reopened.run(images)
        except Exception as error:  # whatever another library raises
            raise ValueError(
                f"{encoder.name} cannot be run at {height}x{width} px where it was exported to: {line(error)}"
            ) from error
        for a, b in zip((ours.pooled, ours.patches), theirs, strict=True):
            if a.shape != b.shape:
                raise ValueError(
                    f"{encoder.name} at {height}x{width} px: exported features are {tuple(b.shape)}, "
                    f"omma's {tuple(a.shape)}"
                )
            if not a.isfinite().all():
                raise ValueError(f"features of {encoder.name} are not finite: its weights are damaged")
            # a maximum of Python's would pass over what is no number
            difference = torch.stack([torch.tensor(difference), (a - b).abs().max()]).max().item()
            scale = max(scale, a.abs().max().item())
        most = max(most, len(images))
        sizes[height, width] = True
    return Compared(difference, scale, most, tuple(sizes))


def eight_bit(preprocess: Preprocess) -> tuple[list[float], list[float]]:
    """Mean and deviation for pixels divided by 255, where (value - low) / (high - low) is folded in."""
    channels = zip(preprocess.low, preprocess.high, preprocess.mean, preprocess.std, strict=True)
    means, stds = [], []
    for low, high, mean, std in channels:
        means.append((low + mean * (high - low)) / 255)
        stds.append(std * (high - low) / 255)
    return means, stds


def raw_note(preprocess: Preprocess) -> tuple[str, ...]:
    """Said where images are not the 8-bit ones that other libraries read."""
    if set(preprocess.low) == {0.0} and set(preprocess.high) == {255.0}:
        return ()
    return ("mean and std are for raw values / 255; omma also clips values to the range it was trained on",)
