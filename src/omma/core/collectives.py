"""Collective operations on tensors; with one process they return their input."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from omma.core import dist as processes


def mean(x: Tensor) -> Tensor:
    """Mean over processes, detached from the graph."""
    if not processes.is_distributed():
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def total(x: Tensor) -> Tensor:
    """Sum over processes, detached from the graph."""
    return mean(x) * processes.world_size()


def largest(x: Tensor) -> Tensor:
    """Elementwise maximum over processes, detached from the graph."""
    if processes.is_distributed():
        x = x.detach().clone()
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


class _Gather(torch.autograd.Function):
    """all_gather whose backward pass returns each process its rows' gradient, summed over processes."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        shards = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(shards, x.contiguous())
        return torch.cat(shards)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Float[Tensor, "b d"]) -> Float[Tensor, "wb d"]:
    """Rows of all processes in order of rank, differentiable; each process must pass equally many rows."""
    return _Gather.apply(x) if processes.is_distributed() else x


class Sum(torch.autograd.Function):
    """all_reduce (sum) whose backward pass sums the gradients of all processes."""

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
