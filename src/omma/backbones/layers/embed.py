"""Patch embedding [Dosovitskiy 2020, arXiv 2010.11929, eq. 1]."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.ops.linear import linear
from omma.ops.patches import padded, patchify, take


class PatchEmbed(nn.Module):
    """Linear embedding of patches, with a weight of a convolution's shape.

    On CPUs reshape + linear trains several times as fast as a strided convolution. An image that is no
    multiple of the patch is padded with zeros, the mean colour, at its right and bottom.
    """

    def __init__(self, channels: int, patch: int, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, dim, patch, patch, bias=bias)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))  # as for a linear layer [He 2021]
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        patches = patchify(padded(images, self.patch), self.patch)
        if keep is not None:  # before the product, so that dropped patches cost nothing
            patches = take(patches, keep)
        weight = self.proj.weight.flatten(1)
        return linear(patches.to(weight.dtype), weight, self.proj.bias)
