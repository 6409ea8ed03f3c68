"""A frozen network whose features are prediction targets; its input is converted to its preprocessing."""

from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.core.protocols import Preprocess, Trained


def require_channels(what: str, trained: Trained, seen: Preprocess) -> None:
    """Raise ValueError for images of another number of channels than the network `what` was made for."""
    if seen.channels != trained.encoder.channels:
        raise ValueError(
            f"{what} was made for {trained.encoder.channels} channels, these images have {seen.channels}: "
            "choose a model that was made for such images"
        )


def prepared(
    images: Float[Tensor, "b c h w"], seen: Preprocess | None, own: Preprocess, size: tuple[int, int]
) -> Float[Tensor, "b c _h _w"]:
    """Images that are normalised as `seen` says (None: as `own`) as a trained network reads them."""
    if seen is not None:
        images = seen.translate(images, own)
    if tuple(images.shape[-2:]) != size:
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
    return images


class Frozen(nn.Module):
    """The patch features f of a trained encoder, or W f + b if that layer was saved beside it.

    Always in evaluation mode and without gradients. seen: preprocessing of its input images; None: the
    encoder's own. layer: name of the linear map W, b in the encoder's extras ("codes", "projection"); without
    it, f is returned. The map is a buffer, which stays fp32 where training casts weights, since bf16 could
    not distinguish similar codes. Raises ValueError if channels or the layer's width do not fit.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, trained: Trained, seen: Preprocess | None, layer: str) -> None:
        super().__init__()
        self.encoder, self.preprocess, self.seen = trained.encoder, trained.preprocess, seen
        self.dim = trained.encoder.dim
        if seen is not None:
            require_channels(trained.encoder.name, trained, seen)
        extras = trained.extras.tensors
        weight, bias = extras.get(f"{layer}.weight"), extras.get(f"{layer}.bias")
        if weight is not None:
            if weight.ndim != 2 or weight.shape[1] != self.dim:
                raise ValueError(
                    f"{layer}.weight beside {trained.encoder.name} is {tuple(weight.shape)}, its features "
                    f"are {self.dim} wide: the files do not belong together, copy them again"
                )
            self.dim = weight.shape[0]
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c h w"], grid: tuple[int, int]) -> Float[Tensor, "b n o"]:
        """Features for each cell of `grid`; images are resized so that this is the encoder's grid too."""
        size = (grid[0] * self.encoder.patch, grid[1] * self.encoder.patch)
        patches = self.encoder(prepared(images, self.seen, self.preprocess, size)).patches
        if patches.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"{self.encoder.name} gives {patches.shape[1]} features for {size[0]}x{size[1]} px, "
                f"{grid[0] * grid[1]} are needed: choose a plain ViT, or a tokenizer trained with one"
            )
        if self.weight is None:
            return patches
        return F.linear(patches.to(self.weight.dtype), self.weight, self.bias)
