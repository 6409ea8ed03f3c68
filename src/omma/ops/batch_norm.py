"""Batch normalisation with statistics over all processes."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from omma.core import dist
from omma.core.collectives import Sum


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of [b, d] or [b, d, h, w] with statistics over the batches of all processes.

    torch's SyncBatchNorm works on GPUs only. Constant inputs and a batch of one give finite values.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"BatchNorm expects [b, d] or [b, d, h, w], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        if not dist.is_distributed():
            if input.numel() == input.shape[1]:  # a single value per channel, which torch rejects
                zero = input - input  # each value is its own mean, and no gradient passes
                shape = (1, -1, *[1] * (input.ndim - 2))
                return self._scaled(zero, shape)
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        x = input.float()
        count = x.numel() / x.shape[1]
        total = Sum.apply(torch.cat([x.sum(axes), x.new_tensor([count])]))
        mean, n = total[:-1] / total[-1], total[-1].detach()
        shape = (1, -1, *[1] * (x.ndim - 2))
        x = x - mean.view(shape)  # before squaring, since squares of nearly equal values would cancel
        variance = Sum.apply(x.square().sum(axes)) / n
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1).clamp(min=1), self.momentum)
        x = x * (variance + self.eps).rsqrt().view(shape)
        return self._scaled(x, shape).to(input.dtype)

    def _scaled(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Times the scale and plus the shift, where there are any."""
        x = x * self.weight.view(shape) if self.affine else x
        return x if self.bias is None else x + self.bias.view(shape)


@contextlib.contextmanager
def calibrated(network: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Meanwhile, batch norms of an untrained network have the statistics of these inputs, not 0 and 1.

    Training gives them such statistics at any learning rate: features change, though nothing is learned.
    Batches of one are left out.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        yield
        return
    modes = [(module, module.training) for module in network.modules()]
    before = [({name: each.clone() for name, each in norm.named_buffers()}, norm.momentum) for norm in norms]
    network.eval()
    try:
        with torch.no_grad():
            for number, batch in enumerate((batch for batch in batches if len(batch) > 1), 1):
                for norm in norms:
                    norm.train()
                    norm.momentum = 1 / number  # the mean over the batches
                network(batch)
        network.eval()
        yield
    finally:
        for norm, (buffers, momentum) in zip(norms, before, strict=True):
            norm.momentum = momentum
            for name, each in norm.named_buffers():
                each.copy_(buffers[name])
        for module, mode in modes:
            module.training = mode
