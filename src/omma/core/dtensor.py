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
