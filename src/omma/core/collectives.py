"""Collectives of tensors over the processes that train together; one alone needs none of them."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from omma.core import dist as group


def mean(x: Tensor) -> Tensor:
    """Mean over all processes, without gradient."""
    if not group.is_distributed():
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def total(x: Tensor) -> Tensor:
    """Sum over all processes, without gradient."""
    return mean(x) * group.world_size()


def largest(x: Tensor) -> Tensor:
    """Maximum over all processes, without gradient."""
    if group.is_distributed():
        x = x.detach().clone()
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


class _Gather(torch.autograd.Function):
    """all_gather whose backward pass returns each process the summed gradient of its own part."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Float[Tensor, "b d"]) -> Float[Tensor, "wb d"]:
    """Rows of all processes, in order of rank, with gradients; every process must hold as many rows."""
    return _Gather.apply(x) if group.is_distributed() else x


class Sum(torch.autograd.Function):
    """all_reduce whose backward pass sums the gradients of all processes."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient
