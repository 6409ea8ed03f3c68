"""torch.compile for repeated blocks: equal blocks are compiled once for each input shape."""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from omma.core import trust
from omma.core.errors import line
from omma.core.protocols import Method

BACKEND = "inductor"
GRAPHS = 1024  # limit for one kind of block: rates of stochastic depth times shapes
SECONDS = 10.0  # to compile a graph; estimated
PAYS = 20.0  # compile only if the run lasts this many times as long


@functools.cache
def _compiled_in_training(plain: FunctionType) -> Callable[..., Tensor]:
    """A block's `forward`, compiled for training only, since batches in evaluation have many sizes.

    Frozen blocks around an adapter are in evaluation mode in training too; there gradients are computed.
    """
    compiled = torch.compile(plain, backend=BACKEND, dynamic=False, fullgraph=True)

    def forward(self: nn.Module, *inputs: Any) -> Tensor:
        trains = self.training or torch.is_grad_enabled()
        return compiled(self, *inputs) if trains else plain(self, *inputs)

    return forward


def start(method: Method) -> None:
    """Compile the blocks of all backbones, a teacher's too, when they are first called in training.

    The function is compiled per class, so that equal blocks share their graphs. Modules and parameter names
    do not change. torch's limits on graphs are raised for this process; a block that cannot be compiled is an
    error (`failed`), not a silent return to slow steps.
    """
    import torch._dynamo.config as limits  # takes a second

    _use_own_cache()
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * GRAPHS)
    for block in method.repeated():
        block.forward = MethodType(_compiled_in_training(type(block).forward), block)


def _use_own_cache() -> None:
    """Let Inductor load no code that others could have put there: its default is a known name below /tmp."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    if trust.why_not(cache_dir()) is not None:
        private = tempfile.mkdtemp(prefix="inductor-")
        atexit.register(shutil.rmtree, private, ignore_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = private


def stop(method: Method) -> None:
    """Undo `start`."""
    for block in method.repeated():
        vars(block).pop("forward", None)


def failed(error: BaseException) -> str | None:
    """The reason of a compilation error, in a line; None for other errors."""
    from torch._dynamo.exc import TorchDynamoException

    return line(error) if isinstance(error, TorchDynamoException) else None


def seconds(method: Method, sizes: int) -> float:
    """Estimated compile time for crops of `sizes` sizes: SECONDS for each kind of block and size.

    A backbone that packs crops has one graph for all sizes. Blocks differ in kind by class, parameter shapes,
    rate of stochastic depth and whether they are trained.
    """
    kinds = {
        (type(b), getattr(b, "drop_path", 0.0), *((p.shape, p.requires_grad) for p in b.parameters()))
        for b in method.repeated()
    }
    return SECONDS * len(kinds) * (1 if method.encoder.packs else sizes)
