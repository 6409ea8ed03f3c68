"""Multi-crop with hidden patches, which iBOT and DINOv2 share [Zhou 2021, arXiv 2111.07832, section 3.3]."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omma.core.protocols import Backbone, Batch
from omma.methods.shared.masking import hide, masked_indices, view_masks


@dataclass(frozen=True)
class MaskedCrops:
    """Two global crops of each of b images, in which patches may be hidden, and their local crops, whole."""

    global_crops: Float[Tensor, "vb c s s"]  # all first ones, then all second ones: v = 2
    local_crops: tuple[Float[Tensor, "lb c r r"], ...]
    mask: Bool[Tensor, "vb n"]  # the hidden patches
    index: Int[Tensor, "m"]  # of the hidden patches among all v b n, padded by zeros (see masked_indices)
    hidden: int  # how many are hidden: the padding begins here

    @classmethod
    def draw(
        cls, encoder: Backbone, batch: Batch, probability: float, share: tuple[float, float], least: float
    ) -> "MaskedCrops":
        """Hide blocks of at least `least` patches in each global crop (see masking.view_masks)."""
        first, second, *rest = batch.views
        global_crops = torch.cat([first[:, 0], second[:, 0]])
        grid = encoder.grid(*global_crops.shape[-2:])
        mask = view_masks(batch.key, 2, grid, probability, share, least)
        index, hidden = masked_indices(mask).to(global_crops.device), int(mask.sum())
        local_crops = tuple(local.transpose(0, 1).flatten(0, 1) for local in rest)
        return cls(global_crops, local_crops, mask.to(global_crops.device), index, hidden)

    def encode(
        self, encoder: Backbone, mask_token: Float[Tensor, "1 1 d"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "vb p d"]]:
        """Pooled features of all crops, global ones first, and the patches of the masked global crops."""
        tokens = [hide(encoder, self.global_crops, self.mask, mask_token)]
        tokens += [(encoder.tokenize(x), encoder.grid(*x.shape[-2:])) for x in self.local_crops]
        features = encoder.encode_many(tokens)
        return torch.cat([f.pooled for f in features]), features[0].patches

    def at_hidden(self, patches: Float[Tensor, "vb p d"]) -> Float[Tensor, "m d"]:
        """The rows of the hidden patches, and those of the padding."""
        return patches.flatten(0, 1)[self.index]

    def counts(self) -> Float[Tensor, "h"]:
        """For each hidden patch: how many are hidden in its crop."""
        counts = self.mask.sum(1, keepdim=True).expand_as(self.mask)
        return counts.flatten()[self.index[: self.hidden]].float()
