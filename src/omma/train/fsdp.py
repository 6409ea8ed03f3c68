"""Parameters spread over processes, each of which keeps a part (FSDP2), and what goes on around them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from omma import backbones
from omma.core import dist
from omma.core.dtensor import is_sharded, to_full, to_local
from omma.core.protocols import Backbone, Features, Method


def sharded(module: nn.Module) -> bool:
    """Are some of its parameters spread over processes?"""
    return any(is_sharded(p) for p in module.parameters())


def shard(method: Method, place: torch.device, dtype: torch.dtype) -> None:
    """Spread the repeated blocks of the method's encoders, a teacher's alike, over all processes.

    Blocks hold nearly all of a large transformer and are called through `forward`, where FSDP2 brings their
    parameters together, in `dtype`, and lets go of them again. All else stays whole on every process, and its
    gradients are averaged (train/ddp.py). Blocks move to `place`; all else must be moved there.
    Raises ValueError for an encoder without such blocks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if not method.encoder.repeated():
        raise ValueError(
            f"--shard fsdp spreads a transformer's blocks, and {method.encoder.name} has none: choose a ViT, "
            "Swin or CaiT, or --shard none"
        )
    mesh = init_device_mesh(place.type, (dist.world_size(),))
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if dtype != torch.float32:
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for block in method.repeated():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The method itself holds none of the parts: it is where they are brought together in turn, the next
    # block's while one computes.
    rest = {p for p in method.parameters() if not is_sharded(p)}
    fully_shard(method, mesh=mesh, mp_policy=policy, ignored_params=rest)


def split(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """An optimizer's groups, none of which mixes parameters that are spread with such as are not.

    A group that was cut in two says in `taken` which group of the original list, and which of its parameters,
    it holds. Without spread parameters the groups are as they were.
    """
    if not any(is_sharded(p) for group in groups for p in group["params"]):
        return [dict(group) for group in groups]
    found = []
    for number, group in enumerate(groups):
        for kind in (False, True):
            rows = [i for i, p in enumerate(group["params"]) if is_sharded(p) == kind]
            if rows:
                params = [group["params"][i] for i in rows]
                found.append({**group, "params": params, "taken": (number, rows)})
    return found


@contextmanager
def unchanged(method: Method, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Whatever happens to their tensors meanwhile is undone, after an error too; a copy waits in main memory.

    A copy on the device to try things on would take room, and blocks that are spread cannot be copied.
    """
    trained = [(p, p.requires_grad) for p in method.parameters()]
    groups = [dict(group) for group in optimizer.param_groups]
    kept = [(t, to_local(t.detach()).to("cpu", copy=True)) for t in (*method.parameters(), *method.buffers())]
    state = {
        p: {k: (v, to_local(v).to("cpu", copy=True)) for k, v in s.items()}
        for p, s in optimizer.state.items()
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in kept:
                to_local(tensor).copy_(copy)
            optimizer.state.clear()
            for p, entries in state.items():
                for tensor, copy in entries.values():
                    to_local(tensor).copy_(copy)
                optimizer.state[p] = {k: tensor for k, (tensor, _) in entries.items()}
        for p, moves in trained:
            p.requires_grad_(moves)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group.update(before)
        optimizer.zero_grad()


class Seen(nn.Module):
    """An encoder whose spread blocks compute in `dtype`, to look at: its other weights are cast, too."""

    def __init__(self, encoder: Backbone, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.dtype = encoder, dtype

    def forward(self, images: Tensor) -> Features:
        weights = {n: p.to(self.dtype) for n, p in self.encoder.named_parameters() if not is_sharded(p)}
        return functional_call(self.encoder, weights, (images,))


def gathered(encoder: Backbone) -> Backbone | None:
    """The whole encoder in process 0's main memory; None on the others. All must ask for it."""
    state = {}
    for name, tensor in encoder.state_dict().items():
        full = to_full(tensor)
        if dist.rank() == 0:
            state[name] = full.detach().to("cpu", copy=True)
    if dist.rank():
        return None
    copy = backbones.unfilled(**encoder.spec())
    copy.load_state_dict(state, assign=True)
    return copy
