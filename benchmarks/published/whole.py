"""Sixteen whole optimizer steps of a method's `paper` recipe, by omma's own loop, and how far they go.

A `Setup` is a narrow network with weights from a formula, given views, and a place in a run. Its recipe is
the method's own, for the setup's batch. The published code trains the same weights on the same views
(whole_*.py); tests hold its numbers, so that they need no clone.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from omma import backbones
from omma.core.protocols import Backbone, Batch, Key, Method, Recipe
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer

if TYPE_CHECKING:  # it imports what tests may lack
    from published.references import References

STEPS = 16
BOUND = 1e-5  # on the difference, as a share of the way that all weights travelled
FILES = (
    "whole_distilled",
    "whole_dinov2",
    "whole_hidden",
    "whole_blocks",
    "whole_contrasted",
)  # modules with ROWS, and SETUPS


class Setup(NamedTuple):
    """One comparison."""

    name: str  # for --rows, and in the tests
    make: Callable[[], tuple[Method, Recipe]]  # fp64, weights from `fill`, the recipe for the batch
    batch: Callable[[int], Batch]  # of a step, fp64
    images: int  # in the data set: an epoch has images / recipe.batch steps
    total: int  # steps of the whole run
    first: int = 0  # the step that the comparison begins at, with fresh moments

    @property
    def epoch(self) -> int:
        """Steps in a pass over the images."""
        return self.images // self.make()[1].batch


class Whole(NamedTuple):
    """A row of the table of whole steps: a setup, and what the published code makes of it.

    theirs: called with the clones, the setup and omma's weights before; returns the published code's
    parameters after the same steps, under omma's names. Parameters that do not move may be left out.
    """

    setup: Setup
    what: str
    source: str  # a repository of references.SOURCES
    part: str  # the files or functions that do the training
    theirs: "Callable[[References, Setup, dict[str, Tensor]], dict[str, Tensor]]"
    remark: str = ""


def encoder(model: str, recipe: Recipe, image_size: int, **narrow: Any) -> Backbone:
    """The backbone as a run builds it, with the recipe's options, and narrow."""
    known = backbones.options(model)
    own = {k: v for k, v in recipe.encoder.items() if k in known}
    options = own | {"drop_path": recipe.drop_path} | narrow
    return backbones.build(name=model, image_size=image_size, channels=3, **options)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Replace what is trained by numbers from a generator, of the size that initial weights have.

    Matrices get a deviation of fan_in^-1/2 / 2; vectors, tokens and positions .05, about their present value
    where that is a constant, else 0: so a comparison sees every parameter, and no other generator counts.
    """
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        if not p.requires_grad:
            continue
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if p.ndim > 1 and p.shape[0] > 1:
            p.copy_(noise * 0.5 * p[0].numel() ** -0.5)
        else:
            constant = p.flatten()[0]
            p.copy_(0.05 * noise + (constant if bool((p == constant).all()) else 0.0))


def crops(step: int, images: int, *plan: tuple[int, int]) -> Batch:
    """A batch of random numbers, fp64: (views of each image, pixels) for each crop of the plan."""
    generator = torch.Generator().manual_seed(1000 + step)
    views = tuple(
        torch.randn(images, n, 3, size, size, generator=generator, dtype=torch.float64) for n, size in plan
    )
    return Batch(views, Key(0, np.full(images, step), np.arange(images)))


@torch.no_grad()
def transplant(
    network: nn.Module, weights: Mapping[str, Tensor], name_of: Callable[[str], str | None]
) -> None:
    """Give a published network omma's weights; name_of: omma's name of a parameter, None to leave it."""
    for theirs, p in network.named_parameters():
        if (name := name_of(theirs)) is not None:
            p.copy_(weights[name].reshape(p.shape))


def collected(
    parameters: Iterable[tuple[str, Tensor]], name_of: Callable[[str], str | None]
) -> dict[str, Tensor]:
    """A published network's parameters under omma's names."""
    return {name: p.detach().clone() for theirs, p in parameters if (name := name_of(theirs)) is not None}


def ours(setup: Setup) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What omma's loop makes of the weights: (before, after), with the names of the method's parameters.

    In fp64 throughout: losses cast what they get to fp32, which here leaves fp64 as it is.
    """
    torch.manual_seed(0)  # of fixed weights that `fill` leaves as they are
    method, recipe = setup.make()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    position = Position.of(recipe, setup.images, setup.first, setup.total)
    batches = (setup.batch(step) for step in range(setup.first, setup.first + STEPS + 1))
    steps = train(method, make_optimizer(method, recipe), batches, recipe, position)
    with mock.patch.object(Tensor, "float", lambda x: x if x.dtype == torch.float64 else x.to(torch.float32)):
        for _ in range(STEPS):
            assert next(steps).rejected is None
    return before, {name: p.detach().clone() for name, p in method.named_parameters()}


def difference(
    before: Mapping[str, Tensor], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> float:
    """Norm of the difference of all weights, as a share of the norm of the way they travelled.

    theirs: the published code's weights under omma's names; all that moved must be there.
    """
    missing = {name for name in ours if name not in theirs and not torch.equal(ours[name], before[name])}
    assert not missing, f"not compared: {sorted(missing)}"
    apart = sum(
        float((ours[name] - theirs[name].reshape(ours[name].shape)).square().sum()) for name in theirs
    )
    return apart**0.5 / way(before, theirs)


def way(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Norm of the way that all weights travelled."""
    ends = (after[name].reshape(before[name].shape) - before[name] for name in after)
    return sum(float(x.square().sum()) for x in ends) ** 0.5


def numbers(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """For each tensor that moved, a weighted sum of its way: what the tests compare."""
    sums = {}
    for name, end in after.items():
        moved = (end.reshape(before[name].shape) - before[name]).flatten().double()
        if moved.any():
            weights = torch.sin(0.7 * torch.arange(len(moved), dtype=torch.float64) + 1)
            sums[name] = float(moved @ weights)
    return sums
