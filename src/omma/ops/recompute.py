"""Activations forgotten and computed anew in the backward pass [Chen 2016, arXiv 1604.06174]."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def run(block: nn.Module, x: Tensor, *context: Any, forget: bool) -> Tensor:
    """block(x, *context); forget: keep nothing of what is inside it until the backward pass, if there is one.

    Random numbers are drawn alike both times. Weights that stand in for the block's own (train/precision.py)
    do so the second time too, when whoever put them there has taken them back.
    """
    if not (forget and torch.is_grad_enabled()):
        return block(x, *context)
    lent: dict[str, Tensor] = {
        name: p for name, p in block.named_parameters() if not isinstance(p, nn.Parameter)
    }

    def again(x: Tensor) -> Tensor:
        return functional_call(block, lent, (x, *context)) if lent else block(x, *context)

    return checkpoint(again, x, use_reentrant=False)  # pyright: ignore[reportReturnType]
