"""Tensors that are sharded over processes (`--shard fsdp`): how to recognise and read them."""

from typing import Any, cast

from torch import Tensor


def is_sharded(x: Tensor) -> bool:
    """Is `x` a DTensor, of which each process holds a shard? By its mesh, since importing DTensor is slow."""
    return hasattr(x, "device_mesh")


def to_local(x: Tensor) -> Tensor:
    """This process's shard, as a view; a tensor that is not sharded is returned unchanged."""
    return cast(Any, x).to_local() if is_sharded(x) else x


def to_full(x: Tensor) -> Tensor:
    """The full tensor, on every process; a collective call, which all processes must make."""
    return cast(Any, x).full_tensor() if is_sharded(x) else x


def shard_like(full: Tensor, x: Tensor) -> Tensor:
    """This process's shard of `full`, which all processes hold, cut as `x` is; all of it if `x` is whole."""
    if not is_sharded(x):
        return full
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = cast(Any, x).device_mesh, cast(Any, x).placements
    return distribute_tensor(full.to(x.device), mesh, placements, src_data_rank=None).to_local()
