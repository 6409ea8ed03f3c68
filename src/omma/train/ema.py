"""Exponential moving average of one network's state in another."""

import copy
from typing import TypeVar

import torch
from torch import nn

from omma.core.dtensor import to_local
from omma.core.protocols import Backbone

Network = TypeVar("Network", bound=nn.Module)


def teacher_of(student: Network) -> Network:
    """A copy without gradients and without stochastic depth."""
    teacher = copy.deepcopy(student)
    for module in teacher.modules():
        if isinstance(module, Backbone):
            module.drop_nothing()
    return teacher.requires_grad_(False)


@torch.no_grad()
def update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum teacher + (1 - momentum) student, for parameters but not for buffers.

    Raises ValueError for a momentum outside [0, 1].
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum}: must lie in [0, 1]")
    slow = [to_local(p) for p in teacher.parameters()]  # sharded in the same way, if at all
    fast = [to_local(p) for p in student.parameters()]
    assert len(slow) == len(fast), "teacher and student differ in shape"
    torch._foreach_lerp_(slow, fast, 1 - momentum)
