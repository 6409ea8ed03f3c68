"""A fingerprint of weights: the same for the same names, shapes and values, wherever they are kept."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def digest(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of names, types, shapes and bytes, in the order of the names."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
