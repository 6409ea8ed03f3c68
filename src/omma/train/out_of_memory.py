"""Steps that do not fit into memory: recognised by their errors, and how a batch is cut further."""

import torch

LACKING = "out of memory"

# Messages of plain RuntimeErrors, raised by the allocators for CPUs and for Apple's GPUs
_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory")


def ran_out(error: BaseException) -> bool:
    """Whether an allocation failed; memory can be allocated again afterwards."""
    plain = isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
    return isinstance(error, torch.OutOfMemoryError) or plain


def more_micro_batches(share: int, accumulate: int) -> int:
    """At least twice as many micro-batches, a number that divides `share` images; at most one an image."""
    return next(n for n in range(min(2 * accumulate, share), share + 1) if share % n == 0)
