"""Repeated blocks compiled by torch.compile: blocks that are alike once, for each shape that they meet."""

import functools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from omma.core.errors import line
from omma.core.protocols import Method

BACKEND = "inductor"
GRAPHS = 1024  # of one kind of block, before torch would give up: rates of stochastic depth times shapes
SECONDS = 10.0  # that a graph is taken to need; estimated
PAYS = 20.0  # how many times as long as compiling a run must last


@functools.cache
def _quick(plain: FunctionType) -> Callable[..., Tensor]:
    """A block's `forward`, compiled for training; in evaluation, whose batches have many sizes, as it is."""
    compiled = torch.compile(plain, backend=BACKEND, dynamic=False, fullgraph=True)

    def forward(self: nn.Module, *inputs: Any) -> Tensor:
        return compiled(self, *inputs) if self.training else plain(self, *inputs)

    return forward


def start(method: Method) -> None:
    """Let the blocks of its backbones, a teacher's alike, be compiled when they are called in training.

    The function belongs to the class, so that blocks of one kind share their graphs. Modules and names of
    parameters stay as they are. torch's limits of graphs are raised for this process; what cannot be compiled
    is an error (`failed`), not a silent return to slow steps.
    """
    import torch._dynamo.config as limits  # takes a second

    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * GRAPHS)
    for block in method.repeated():
        block.forward = MethodType(_quick(type(block).forward), block)


def stop(method: Method) -> None:
    """As it was before `start`."""
    for block in method.repeated():
        vars(block).pop("forward", None)


def failed(error: BaseException) -> str | None:
    """Why something could not be compiled, in a line; None for other errors."""
    from torch._dynamo.exc import TorchDynamoException

    return line(error) if isinstance(error, TorchDynamoException) else None


def seconds(method: Method, sizes: int) -> float:
    """What compiling is taken to need for crops of so many sizes: SECONDS for each kind of block and size.

    A backbone that packs crops has one graph for all of their sizes. Blocks differ in kind by class, shapes,
    rate of stochastic depth (which fixes how many samples are kept) and whether they are trained.
    """
    kinds = {
        (type(b), getattr(b, "drop_path", 0.0), *((p.shape, p.requires_grad) for p in b.parameters()))
        for b in method.repeated()
    }
    return SECONDS * len(kinds) * (1 if method.encoder.packs else sizes)
