"""Shared by VQ-VAE and dVAE: options, how codes are saved beside the encoder, and metrics of their use."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from omma.core.protocols import Extras, Reconstruction
from omma.methods.shared.pixel_decoding import PixelDecoding
from omma.ops import statistics


@dataclass(frozen=True, kw_only=True)
class Tokenizing(PixelDecoding):
    """Options of a method that learns K codes of patches."""

    codes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codes < 2:
            raise ValueError(f"method.codes={self.codes}: at least 2 are needed")


def codes_extras(weight: Float[Tensor, "k d"], bias: Float[Tensor, "k"]) -> Extras:
    """A linear map from the encoder's features to codes: argmax(W f + b) is the code of a patch."""
    return Extras({"codes.weight": weight.detach(), "codes.bias": bias.detach()}, {"codes": len(weight)})


def code_use(counts: Float[Tensor, "k"]) -> dict[str, Tensor]:
    """How evenly a batch uses the codes, from how often each was chosen."""
    return {
        "code_perplexity": statistics.entropy(counts / counts.sum()).exp(),
        "codes_used": (counts > 0).float().mean(),
    }


def reconstruction(images: Float[Tensor, "b c h w"], decoded: Float[Tensor, "b c H W"]) -> Reconstruction:
    """Images as decoded from their codes, without the padding to whole patches."""
    h, w = images.shape[-2:]
    return Reconstruction(decoded[..., :h, :w], None, "The image, and its reconstruction from codes alone.")
