"""The head of methods that hide patches behind a mask token and predict what is there."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from omma.core.protocols import Backbone
from omma.methods.shared.masking import hide, places


class MaskedHead(nn.Module):
    """A mask token in place of hidden patches, and a linear prediction from the encoder's features there.

    Only hidden places reach the linear layer [Bao 2021, arXiv 2106.08254, section 2.3].
    """

    def __init__(self, encoder: Backbone, out: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.token_dim))
        self.predict = nn.Linear(encoder.dim, out)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.predict.weight, std=0.02)
        nn.init.zeros_(self.predict.bias)

    def forward(
        self, encoder: Backbone, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "m o"]:
        """mask: which patches of the encoder's grid are hidden; m of them, image after image."""
        tokens, grid = hide(encoder, images, mask, self.mask_token)
        features = encoder.encode(tokens, grid).patches.flatten(0, 1)
        return self.predict(features[places(mask)])[: int(mask.sum())]
