"""Tensors of which each process holds a part (`--shard fsdp`): told from others, and the part itself."""

from typing import Any, cast

from torch import Tensor


def spread(x: Tensor) -> bool:
    """Does each process hold a part of it? Such a DTensor has a mesh; importing the class takes a while."""
    return hasattr(x, "device_mesh")


def local(x: Tensor) -> Tensor:
    """The part that this process holds, as a view; a tensor that is not spread, as it is."""
    return cast(Any, x).to_local() if spread(x) else x


def whole(x: Tensor) -> Tensor:
    """All parts together, on every process; all must ask for it."""
    return cast(Any, x).full_tensor() if spread(x) else x
