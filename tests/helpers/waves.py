"""Tensors that are the same on any machine with any version of any library: no random numbers."""

import numpy as np
import torch


def wave(*shape, phase=0.0, scale=1.0, step=0.7):
    """scale sin(step i + .37 i^2 + phase) for the i-th value, fp64."""
    i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (scale * torch.sin(step * i + 0.37 * i * i + phase)).reshape(shape)
