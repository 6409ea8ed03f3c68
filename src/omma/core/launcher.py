"""What a launcher such as torchrun says of this process: one of how many, and on which machine's found."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One process among those that train together."""

    rank: int = 0
    world_size: int = 1  # processes in all
    local_rank: int = 0  # its number on this machine, and so its GPU's
    local_world_size: int = 1  # processes on this machine
    restarts: int = 0  # how often torchrun has started them anew


def ranks() -> Ranks:
    """From the variables that torchrun sets, or the four of them that PyTorch itself reads; else alone."""
    if not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return Ranks()

    def number(name: str, default: int) -> int:
        value = os.environ.get(name, default)
        try:
            return int(value)
        except ValueError:
            raise ValueError(f"{name}={value}: must be a number; torchrun sets it") from None

    found = Ranks(
        rank=number("RANK", 0),
        world_size=number("WORLD_SIZE", 1),
        local_rank=number("LOCAL_RANK", 0),
        local_world_size=number("LOCAL_WORLD_SIZE", 1),
        restarts=number("TORCHELASTIC_RESTART_COUNT", 0),
    )
    if not 0 <= found.rank < found.world_size:
        raise ValueError(
            f"RANK={found.rank} of WORLD_SIZE={found.world_size}: start with torchrun, which sets both"
        )
    return found
