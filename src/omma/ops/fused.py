"""A linear layer with its GELU in one kernel, where that is faster: bf16 inference on a CPU with oneDNN."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def linear_gelu(
    x: Float[Tensor, "*b d"], weight: Float[Tensor, "o d"], bias: Float[Tensor, "o"]
) -> Float[Tensor, "*b o"]:
    """gelu(x W^T + b). In one kernel the sum is not rounded to bf16 before the GELU [Hendrycks 2016]."""
    one = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
    )
    if one:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    return F.gelu(F.linear(x, weight, bias))
