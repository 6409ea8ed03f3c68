"""Other libraries' training steps, each composed as its documentation does; in the setting of a race."""

import contextlib
from collections.abc import Callable

import torch
from setting import Setting
from torch import Tensor
from torch.optim import Optimizer


def precision(s: Setting, bf16: bool) -> contextlib.AbstractContextManager:
    """Mixed precision as everyone's documentation has it, or none."""
    return torch.autocast(s.device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def nothing() -> None:
    """Where a documented loop does no more."""


def stepper(
    s: Setting,
    bf16: bool,
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    before: Callable[[], None] = nothing,
    after: Callable[[], None] = nothing,
) -> Callable[[], Tensor]:
    """Forward, backward, optimizer, as in every documented loop; `before`, `after`: of the optimizer."""

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
