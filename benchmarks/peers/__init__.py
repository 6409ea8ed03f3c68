"""Training steps of other libraries, composed as in their documentation, in the setting of a race."""

import contextlib
from collections.abc import Callable

import torch
from setting import Setting
from torch import Tensor
from torch.optim import Optimizer


def precision(s: Setting, bf16: bool) -> contextlib.AbstractContextManager:
    """Mixed precision by autocast, as in the documentation, or none."""
    return torch.autocast(s.device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def nothing() -> None:
    """For documented loops that do nothing more."""


def stepper(
    s: Setting,
    bf16: bool,
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    before: Callable[[], None] = nothing,
    after: Callable[[], None] = nothing,
) -> Callable[[], Tensor]:
    """Forward, backward and optimizer step; `before` and `after` are called around the optimizer's step."""

    def step() -> Tensor:
        with precision(s, bf16):
            value = loss()
        value.backward()
        before()
        optimizer.step()
        optimizer.zero_grad()
        after()
        return value.detach()

    return step
