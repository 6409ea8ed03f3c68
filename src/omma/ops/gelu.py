"""GELU [Hendrycks 2016, arXiv 1606.08415]."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from omma.ops.cpu import native


def gelu(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """x Phi(x), Phi the standard normal distribution function; by omma's kernel where there is one."""
    return native.Gelu.apply(x) if native.fits(x) else F.gelu(x)  # pyright: ignore[reportReturnType]
