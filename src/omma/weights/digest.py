"""A fingerprint of weights that depends on names, types, shapes and values alone."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def digest(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 of names, types, shapes and bytes, in sorted order of the names."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    sha256 = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()
