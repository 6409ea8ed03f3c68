"""This process's rank and the number of processes, from the environment that torchrun sets."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The ranks of this process among all processes of a run."""

    rank: int = 0
    world_size: int = 1  # processes in all
    local_rank: int = 0  # rank on this machine, which is also the number of its GPU
    local_world_size: int = 1  # processes on this machine
    restarts: int = 0  # how often torchrun has restarted the processes


def ranks() -> Ranks:
    """Ranks from torchrun's environment variables; the defaults, one process, where they are not set.

    RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be set; the others are optional. Raises ValueError for
    values that are no numbers or contradict each other.
    """
    if not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return Ranks()

    def number(name: str, default: int) -> int:
        value = os.environ.get(name, default)
        try:
            return int(value)
        except ValueError:
            raise ValueError(f"{name}={value}: must be a number; torchrun sets it") from None

    result = Ranks(
        rank=number("RANK", 0),
        world_size=number("WORLD_SIZE", 1),
        local_rank=number("LOCAL_RANK", 0),
        local_world_size=number("LOCAL_WORLD_SIZE", 1),
        restarts=number("TORCHELASTIC_RESTART_COUNT", 0),
    )
    if not 0 <= result.rank < result.world_size:
        raise ValueError(
            f"RANK={result.rank} of WORLD_SIZE={result.world_size}: start with torchrun, which sets both"
        )
    return result
