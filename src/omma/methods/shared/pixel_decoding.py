"""Shared by methods that predict pixels with a small decoder: options, patches, and a report's pictures."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from omma.backbones.layers import Size
from omma.backbones.layers.decoder import PixelDecoder
from omma.core.checks import decoder, range_within_one
from omma.core.protocols import Backbone, Crop, Reconstruction
from omma.ops.patches import padded, patchify, restored, unpatchify


@dataclass(frozen=True, kw_only=True)
class PixelDecoding:
    """Options of a method with a pixel decoder."""

    decoder_depth: int = 4
    decoder_dim: int = 512
    decoder_heads: int = 8
    scale: tuple[float, float] = (0.2, 1.0)  # area of the crop, as a share of the image's

    def __post_init__(self) -> None:
        range_within_one(self, "scale")
        decoder(self)

    def decoder_size(self) -> Size:
        return Size(self.decoder_depth, self.decoder_dim, self.decoder_heads)


def small_decoder(image_size: int) -> dict[str, Any]:
    """Options of a light decoder, and milder crops, for 1,000 to 100,000 images on one machine."""
    depth, dim, heads = (1, 96, 3) if image_size < 64 else (2, 128, 4)
    return {"decoder_depth": depth, "decoder_dim": dim, "decoder_heads": heads, "scale": (0.4, 1.0)}


def one_crop(config: PixelDecoding, image_size: int) -> tuple[Crop, ...]:
    """One crop, flipped at random; no colour augmentation."""
    return (Crop(size=image_size, scale=config.scale),)


def patches_of(images: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n p"]:
    """The pixels of each patch; images are padded with zeros to whole patches."""
    return patchify(padded(images, patch), patch)


def decode(
    decoder: PixelDecoder, codes: Float[Tensor, "b n k"], grid: tuple[int, int]
) -> Float[Tensor, "b n o"]:
    """The decoder's output for codes (or mixtures of them), in the decoder's precision."""
    return decoder.decode(decoder.embed(codes.to(decoder.embed.weight.dtype)), grid)


def masked_reconstruction(
    encoder: Backbone,
    images: Float[Tensor, "b c h w"],
    predicted: Float[Tensor, "b n p"],
    mask: Bool[Tensor, "b n"],
    normalised: bool,
) -> Reconstruction:
    """The images with the masked patches replaced by predictions.

    normalised: predictions are of normalised patches, and get the true patch's mean and deviation, as in
    MAE's pictures.
    """
    patch, (h, w) = encoder.patch, images.shape[-2:]
    grid = encoder.grid(h, w)
    patches, predicted = patches_of(images, patch), predicted.float()
    if normalised:
        predicted = restored(predicted, patches)
    picture = unpatchify(torch.where(mask[:, :, None], predicted, patches), patch, grid)[..., :h, :w]
    hidden = mask.unflatten(1, grid).repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :h, :w]
    visible = 1 - float(mask.float().mean())
    caption = f"The image, the {visible:.0%} of it that the encoder saw, and the reconstruction from that."
    return Reconstruction(picture, hidden, caption)
