"""A second set of values for some of a network's tensors: their average over time, or the best so far."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Shadow(nn.Module):
    """Copies of tensors, in the state_dict; every call gives the same tensors, in the same order."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"of_{number}", tensor.detach().clone())

    def _own(self) -> list[Tensor]:
        return list(self.buffers())

    @torch.no_grad()
    def follow(self, tensors: Sequence[Tensor], decay: float) -> None:
        """Own values <- decay times them + (1 - decay) times those of the tensors."""
        torch._foreach_lerp_(self._own(), [t.detach() for t in tensors], 1 - decay)

    @torch.no_grad()
    def take(self, tensors: Sequence[Tensor]) -> None:
        """Become equal to the tensors."""
        torch._foreach_copy_(self._own(), [t.detach() for t in tensors])

    @torch.no_grad()
    def put(self, tensors: Sequence[Tensor]) -> None:
        """Make the tensors equal to these values."""
        torch._foreach_copy_([t.detach() for t in tensors], self._own())

    @contextmanager
    def in_place_of(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Meanwhile, the tensors have these values."""
        before = [t.detach().clone() for t in tensors]
        self.put(tensors)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([t.detach() for t in tensors], before)
