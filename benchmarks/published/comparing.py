"""Toy networks and batches for both sides, and the differences between them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from published.references import References
from torch import Tensor, nn

from omma.backbones.vit import ViT
from omma.core.protocols import Batch, Context, Key

STEPS, RATE = 3, 0.1
IMAGE, PATCH, LOCAL, IMAGES = 16, 4, 8, 4


class Differences:
    """Largest absolute differences of losses (and intermediate outputs), gradients and states."""

    def __init__(self) -> None:
        self.worst: dict[str, float] = {}

    def note(self, kind: str, ours: Any, theirs: Any) -> None:
        ours, theirs = (torch.as_tensor(x).detach().double() for x in (ours, theirs))
        assert ours.shape == theirs.shape, (kind, ours.shape, theirs.shape)
        worst = float((ours - theirs).abs().max()) if ours.numel() else 0.0
        assert math.isfinite(worst), kind
        self.worst[kind] = max(self.worst.get(kind, 0.0), worst)

    def gradients(self, ours: nn.Module, theirs: nn.Module) -> None:
        """Compare gradients of two networks with the same parameters."""
        twins = dict(theirs.named_parameters())
        reached = 0
        for name, p in ours.named_parameters():
            if p.grad is None:
                assert twins[name].grad is None or not twins[name].grad.any(), name
                continue
            reached += bool(p.grad.any())
            self.note("gradient", p.grad, twins[name].grad)
        assert reached, "no gradient to compare"

    def states(self, ours: nn.Module, theirs: nn.Module) -> None:
        twins = theirs.state_dict()
        for name, value in ours.state_dict().items():
            self.note("state", value, twins[name])


def wave(*shape: int, phase: float = 0.0, scale: float = 1.0, step: float = 0.7) -> Tensor:
    """scale sin(step i + .37 i^2 + phase) for the i-th value, fp32: the tests' inputs."""
    i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (scale * torch.sin(step * i + 0.37 * i * i + phase)).reshape(shape).float()


def leaf(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same numbers as leaves that require gradients: fp32 for omma, fp64 for the published code."""
    return x.clone().requires_grad_(), x.double().requires_grad_()


def toy(**options: Any) -> ViT:
    """A small network."""
    shape = {"depth": 2, "dim": 16, "heads": 2, "hidden": 64, "patch": PATCH, "image_size": IMAGE}
    return ViT("toy", **(shape | options))


def scatter(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        if p.requires_grad:
            ones = bool(p.data.eq(1).all())  # a norm's weight, prototypes' gains
            scale = p.shape[-1] ** -0.5 if p.ndim > 1 and not ones else 0.1
            p.data.copy_(torch.randn(p.shape, generator=generator) * scale + ones)


def made(file: Any, config: Any, **options: Any) -> Any:
    """A method with toy weights, whose averaged network differs slightly."""
    torch.manual_seed(0)
    method = file.Method(toy(**options), config, Context(image_size=IMAGE))
    scatter(method)
    return method.train()


def batch(step: int, *plan: tuple[int, int], images: int = IMAGES) -> Batch:
    """Images of random numbers: (how many of each image, pixels)."""
    generator = torch.Generator().manual_seed(step)
    views = tuple(torch.randn(images, n, 3, size, size, generator=generator) for n, size in plan)
    return Batch(views, Key(0, np.full(images, step), np.arange(images)))


def double(views: tuple[Tensor, ...]) -> list[Tensor]:
    """Crops for the published code: one tensor per view, in fp64."""
    return [view.transpose(0, 1).flatten(0, 1).double() for view in views]


@torch.no_grad()
def descend(*networks: nn.Module, rate: float = RATE) -> None:
    for network in networks:
        for p in network.parameters():
            if p.grad is not None:
                p -= rate * p.grad
                p.grad = None


def multi_crop(step: int) -> Batch:
    return batch(step, (1, IMAGE), (1, IMAGE), (3, LOCAL))


HEAD = {"prototypes": 24, "head_hidden": 16, "head_bottleneck": 8}
TEMPERATURES = {"teacher_temp_start": 0.04, "teacher_temp": 0.07, "teacher_temp_warmup": (STEPS - 1) / STEPS}


def temperature_at(step: int) -> float:
    return 0.04 + 0.03 * step / (STEPS - 1)


class Row(NamedTuple):
    name: str  # for --rows
    what: str
    source: str  # a repository of SOURCES, or an installed package
    part: str  # what of it
    compare: Callable[[References, Differences], None]
    remark: str = ""
