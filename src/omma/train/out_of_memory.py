"""Steps that do not fit into memory: told from other errors, and how a batch is cut further."""

import torch

LACKING = "out of memory"

# Words of errors that are plain RuntimeErrors: of the allocators for CPUs and for Apple's GPUs
_WORDS = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory")


def ran_out(error: BaseException) -> bool:
    """Was memory what was lacking? It then was when something was allocated, and can be had anew."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    return isinstance(error, torch.OutOfMemoryError) or said


def parts(share: int, accumulate: int) -> int:
    """Twice as many parts for `share` images, or the next number that divides them; at most one for each."""
    return next(n for n in range(min(2 * accumulate, share), share + 1) if share % n == 0)
