"""Collectives that are the identity on one process."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


def active() -> bool:
    """Is there a process group of more than one?"""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if active() else 0


def world() -> int:
    return dist.get_world_size() if active() else 1


def mean(x: Tensor) -> Tensor:
    """Mean over all processes, without gradient."""
    if not active():
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def total(x: Tensor) -> Tensor:
    """Sum over all processes, without gradient."""
    return mean(x) * world()


def largest(x: Tensor) -> Tensor:
    """Maximum over all processes, without gradient."""
    if active():
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
    return _Gather.apply(x) if active() else x


class _Sum(torch.autograd.Function):
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


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over [b, d] or [b, d, h, w] whose statistics are those of all processes' batch.

    torch's SyncBatchNorm does this on GPUs only. Constant inputs and a batch of one give finite values.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"BatchNorm expects [b, d] or [b, d, h, w], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        if not active():
            # torch refuses statistics over one value; a zero variance is what they would be
            if input.numel() == input.shape[1]:
                zero = input - input  # each value is its own mean, and no gradient passes
                shape = (1, -1, *[1] * (input.ndim - 2))
                return zero if not self.affine else zero * self.weight.view(shape) + self.bias.view(shape)
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        x = input.float()
        count = x.numel() / x.shape[1]
        total = _Sum.apply(torch.cat([x.sum(axes), x.new_tensor([count])]))
        mean, n = total[:-1] / total[-1], total[-1].detach()
        shape = (1, -1, *[1] * (x.ndim - 2))
        x = x - mean.view(shape)  # first, for the squares of nearly equal values would cancel
        variance = _Sum.apply(x.square().sum(axes)) / n
        running_mean, running_var, seen = self.running_mean, self.running_var, self.num_batches_tracked
        momentum = self.momentum
        assert running_mean is not None
        assert running_var is not None
        assert seen is not None
        assert momentum is not None
        with torch.no_grad():
            seen += 1
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * n / (n - 1).clamp(min=1), momentum)
        x = x * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(input.dtype)
