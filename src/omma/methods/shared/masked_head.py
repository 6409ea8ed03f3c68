"""BEiT's and EVA's shared part: hide blocks of patches and predict a trained network's output there."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from omma.backbones.layers.init import scheme_of
from omma.core import collectives
from omma.core.checks import between, range_within_one
from omma.core.protocols import Backbone, Batch
from omma.methods.shared.masking import blocks, hide, masked_indices


@dataclass(frozen=True, kw_only=True)
class BlockMasking:
    """Options of a method that hides blocks of patches; the defaults are BEiT's."""

    mask_share: float = 75 / 196  # largest share of the patches to hide
    block_share: float = 16 / 196  # smallest share of the patches in one block
    scale: tuple[float, float] = (0.08, 1.0)  # area of the crop, as a share of the image's

    def __post_init__(self) -> None:
        between(self, "mask_share", "block_share")
        range_within_one(self, "scale")
        if self.block_share > self.mask_share:
            raise ValueError(
                f"method.block_share={self.block_share}: must be at most mask_share={self.mask_share}"
            )


class Hidden(NamedTuple):
    """Images with the blocks of patches to hide."""

    images: Float[Tensor, "b c h w"]
    grid: tuple[int, int]  # of patches
    mask: Bool[Tensor, "b n"]  # M: the hidden patches
    count: Float[Tensor, ""]  # |M|, mean over processes, so that all hidden patches have the same weight


def hidden_blocks(config: BlockMasking, encoder: Backbone, batch: Batch) -> Hidden:
    """The batch's only view, and the blocks of patches to hide."""
    (crops,) = batch.views
    images = crops[:, 0]
    grid = encoder.grid(*images.shape[-2:])
    mask = blocks(batch.key, grid, config.mask_share, config.block_share).to(images.device)
    return Hidden(images, grid, mask, collectives.mean(mask.sum().float()))


class MaskedHead(nn.Module):
    """A mask token for hidden patches, and a linear layer on the encoder's features of these patches only.

    [Bao 2021, arXiv 2106.08254, section 2.3]; initial values are distributed as the encoder's.
    """

    def __init__(self, encoder: Backbone, out: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.token_dim))
        self.predict = nn.Linear(encoder.dim, out)
        scheme = scheme_of(encoder)
        scheme.token(self.mask_token)
        scheme.mlp(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def forward(
        self, encoder: Backbone, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "m o"]:
        """Predictions for the m hidden patches of the encoder's grid, image after image."""
        tokens, grid = hide(encoder, images, mask, self.mask_token)
        features = encoder.encode(tokens, grid).patches.flatten(0, 1)
        return self.predict(features[masked_indices(mask)])[: int(mask.sum())]
