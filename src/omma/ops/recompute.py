"""Activation checkpointing: activations are recomputed in the backward pass [Chen 2016, arXiv 1604.06174]."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def run(block: nn.Module, x: Tensor, *context: Any, forget: bool) -> Tensor:
    """block(x, *context). forget: save only the inputs and recompute the rest in the backward pass.

    Both passes draw the same random numbers. Where other tensors replace the block's parameters during the
    forward pass (train/precision.py), the recomputation uses them too, though they are gone by then.
    """
    if not (forget and torch.is_grad_enabled()):
        return block(x, *context)
    replaced: dict[str, Tensor] = {
        name: p for name, p in block.named_parameters() if not isinstance(p, nn.Parameter)
    }

    def again(x: Tensor) -> Tensor:
        return functional_call(block, replaced, (x, *context)) if replaced else block(x, *context)

    return checkpoint(again, x, use_reentrant=False)  # pyright: ignore[reportReturnType]
