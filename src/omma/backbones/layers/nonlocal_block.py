"""The non-local block: attention between all positions of a feature map [Wang 2018, arXiv 1711.07971]."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.ops.batch_norm import BatchNorm


class NonLocal(nn.Module):
    """z = W_z y + x with y = softmax(theta(x)^T phi(x)) g(x), the embedded Gaussian [eq. 2, 4, 6].

    theta, phi and g halve the channels. W_z is followed by a batch norm whose scale starts at 0, so that a
    new block is the identity [section 4.1]. pool: phi and g are max-pooled 2x2, which quarters the products
    [section 3.3]; the last row and column of an odd map are pooled too.
    """

    def __init__(self, dim: int, pool: bool = False) -> None:
        super().__init__()
        self.pool = pool
        half = max(dim // 2, 1)
        self.theta = nn.Conv2d(dim, half, 1)
        self.phi = nn.Conv2d(dim, half, 1)
        self.g = nn.Conv2d(dim, half, 1)
        self.w_z = nn.Conv2d(half, dim, 1)
        self.norm = BatchNorm(dim)
        nn.init.zeros_(self.norm.weight)

    def keys(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the map of keys."""
        return (-(-height // 2), -(-width // 2)) if self.pool else (height, width)

    def _subsample(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c m"]:
        return (F.max_pool2d(x, 2, ceil_mode=True) if self.pool else x).flatten(2)

    def weights(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 n m"]:
        """Attention weights between all positions: softmax of unscaled products, as in the paper."""
        theta, phi = self.theta(x).flatten(2), self._subsample(self.phi(x))
        return (theta.transpose(1, 2) @ phi).softmax(-1)[:, None]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = self.weights(x)[:, 0] @ self._subsample(self.g(x)).transpose(1, 2)
        y = y.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.norm(self.w_z(y))
