"""Networks whose blocks are sharded over processes (FSDP2): made, undone after a trial, gathered."""

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
    """Whether some of its parameters are sharded over processes."""
    return any(is_sharded(p) for p in module.parameters())


def shard(method: Method, device: torch.device, dtype: torch.dtype) -> None:
    """Shard the repeated blocks of the method's encoders, a teacher's too, over all processes.

    Blocks hold nearly all parameters of a large transformer and are called through `forward`, where FSDP2
    gathers their parameters in `dtype` and frees them again. All other parameters stay whole on every
    process, and their gradients are averaged (train/ddp.py). Blocks move to `device`; the caller moves the
    rest. Raises ValueError for an encoder without repeated blocks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if not method.encoder.repeated():
        raise ValueError(
            f"--shard fsdp shards a transformer's blocks, and {method.encoder.name} has none: choose a ViT, "
            "Swin or CaiT, or --shard none"
        )
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if dtype != torch.float32:
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for block in method.repeated():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The method is the FSDP root and shards nothing itself: a root gathers the next block while one computes.
    unsharded = {p for p in method.parameters() if not is_sharded(p)}
    fully_shard(method, mesh=mesh, mp_policy=policy, ignored_params=unsharded)


def split(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """An optimizer's groups, cut so that none mixes sharded and whole parameters.

    The entry `original` of a group that was cut is the number of the original group and the positions in it.
    Without sharded parameters the groups are copies.
    """
    if not any(is_sharded(p) for group in groups for p in group["params"]):
        return [dict(group) for group in groups]
    cut = []
    for number, group in enumerate(groups):
        for kind in (False, True):
            rows = [i for i, p in enumerate(group["params"]) if is_sharded(p) == kind]
            if rows:
                params = [group["params"][i] for i in rows]
                cut.append({**group, "params": params, "original": (number, rows)})
    return cut


@contextmanager
def unchanged(method: Method, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Undo on exit, also after an error, all changes to their tensors; copies lie in main memory.

    Training a copy on the device instead would take its memory, and sharded blocks cannot be copied.
    """
    trained = [(p, p.requires_grad) for p in method.parameters()]
    groups = [dict(group) for group in optimizer.param_groups]
    tensors = [
        (t, to_local(t.detach()).to("cpu", copy=True)) for t in (*method.parameters(), *method.buffers())
    ]
    state = {
        p: {k: (v, to_local(v).to("cpu", copy=True)) for k, v in s.items()}
        for p, s in optimizer.state.items()
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in tensors:
                to_local(tensor).copy_(copy)
            optimizer.state.clear()
            for p, entries in state.items():
                for tensor, copy in entries.values():
                    to_local(tensor).copy_(copy)
                optimizer.state[p] = {k: tensor for k, (tensor, _) in entries.items()}
        for p, trains in trained:
            p.requires_grad_(trains)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group.update(before)
        optimizer.zero_grad()


class CastEncoder(nn.Module):
    """An encoder with sharded blocks that casts its other weights to `dtype`, that of the blocks."""

    def __init__(self, encoder: Backbone, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.dtype = encoder, dtype

    def forward(self, images: Tensor) -> Features:
        weights = {n: p.to(self.dtype) for n, p in self.encoder.named_parameters() if not is_sharded(p)}
        return functional_call(self.encoder, weights, (images,))


def gather_encoder(encoder: Backbone) -> Backbone | None:
    """The whole encoder in process 0's main memory, None on the others. All processes must call."""
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
