"""Gradients: their norm, and what is clipped together."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from omma.core import collectives
from omma.core.dtensor import is_sharded, to_local


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients, sharded ones included."""
    whole = nn.utils.get_total_norm([g for g in gradients if not is_sharded(g)])
    shards = [to_local(g) for g in gradients if is_sharded(g)]
    if not shards:
        return whole
    squares = torch.stack(torch._foreach_norm(shards)).square().sum()
    return (collectives.total(squares) + whole.to(squares.device).square()).sqrt()


def clip(
    optimizer: torch.optim.Optimizer, most: float, by: Literal["all", "part", "tensor"], norm_of_all: Tensor
) -> None:
    """Scale gradients down to norm `most`: all of them, each part (`ParamGroup.part`) or each tensor."""
    if norm_of_all.device.type == "cpu" and norm_of_all <= most:  # reading it from a GPU would wait
        return
    if by == "tensor":
        _clip_each([p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None], most)
        return
    parts: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        part = group.get("part", "") if by == "part" else ""
        parts.setdefault(part, []).extend(p.grad for p in group["params"] if p.grad is not None)
    for gradients in parts.values():
        if gradients:
            _scale(gradients, most, norm_of_all if by == "all" else norm(gradients))


def _scale(gradients: Sequence[Tensor], most: float, length: Tensor) -> None:
    factor = (most / (length + 1e-6)).clamp(max=1.0)
    local = [to_local(g) for g in gradients]
    for device in {g.device for g in local}:
        torch._foreach_mul_([g for g in local if g.device == device], factor.to(device))


def _clip_each(gradients: Sequence[Tensor], most: float) -> None:
    if not gradients:
        return
    local = [to_local(g) for g in gradients]
    norms = torch._foreach_norm(local)
    exact = torch.float64 if any(x.dtype == torch.float64 for x in norms) else torch.float32
    lengths = torch.stack([x.to(exact) for x in norms])
    if sharded := [i for i, g in enumerate(gradients) if is_sharded(g)]:
        lengths[sharded] = collectives.total(lengths[sharded].square()).sqrt()
    factors = (most / (lengths + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(local, [f.to(g.dtype) for f, g in zip(factors.unbind(), local, strict=True)])
