"""MAE: masked autoencoding [He 2021, arXiv 2111.06377].

Three quarters of the patches are hidden, and the encoder sees only the rest. From the encoded patches and a
mask token at each hidden patch, a small decoder predicts the hidden pixels, normalised per patch.

    L = mean over hidden patches of |decoder(encoder(x_visible)) - normalised(x)|^2

Costs: one view, a quarter of its patches through the encoder: the cheapest step of the family on a large ViT.
Choose it to fine-tune afterwards, with a large ViT and long runs; its frozen features separate little.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omma.backbones.layers.decoder import PixelDecoder
from omma.backbones.layers.init import scheme_of
from omma.core import protocols
from omma.core.checks import between
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Features,
    HealthSignal,
    Key,
    Needs,
    ParamGroup,
    Recipe,
    Reconstruction,
    Schedule,
    StepOutput,
)
from omma.core.random import Stream
from omma.losses import reconstruction
from omma.methods.shared import signals
from omma.methods.shared.masking import random_keep
from omma.methods.shared.pixel_decoding import (
    PixelDecoding,
    masked_reconstruction,
    one_crop,
    patches_of,
    small_decoder,
)
from omma.methods.shared.small_data import MUON
from omma.ops.patches import normalised
from omma.train import param_groups


@dataclass(frozen=True, kw_only=True)
class Config(PixelDecoding):
    """The paper's defaults."""

    mask_share: float = 0.75
    decoder_depth: int = 8
    decoder_heads: int = 16
    normalise_target: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "mask_share")


def needs(config: Config) -> Needs:
    """A backbone that can drop tokens."""
    return Needs(drops_tokens=True)


views = one_crop


def paper(image_size: int, model: str) -> Recipe:
    """ViT-B to ViT-H on ImageNet: batch 4096, 800 epochs; the paper's longest runs have 1600.

    `omma pretrain IMAGES --method mae --recipe paper --model vit-l/16 --epochs 800`
    """
    return Recipe(
        config=Config(), batch=4096, lr=1.5e-4 * 4096 / 256, rate_by_batch="linear", lr_end=0.0,
        warmup_epochs=40, schedule=Schedule(ramp="open"), weight_decay=0.05, betas=(0.9, 0.95),
        decayed=("token",), clip=None, encoder={"positions": "sincos", "init": "mae"},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: a light decoder, mean pooling.

    `omma pretrain cifar10_25k.zip --method mae --model vit-n/4 --budget 10m` on two cores: k-NN 47.6 %,
    the untrained network's 28.0 (docs/benchmarks.md), both with 0.1.0's recipe.
    """
    return Recipe(
        config=Config(**small_decoder(image_size)), batch=256, lr=1.5e-3, lr_end=0.0, warmup=0.05,
        weight_decay=0.05, betas=(0.9, 0.95), clip=3.0, encoder={"positions": "sincos", "pool": "mean"},
        **MUON,
    )  # fmt: skip


class Decoder(PixelDecoder):
    """Encoded visible patches to pixels of all patches; initial values are distributed as the encoder's."""

    def __init__(self, encoder: Backbone, config: Config, grid: tuple[int, int]) -> None:
        size, scheme = config.decoder_size(), scheme_of(encoder)
        super().__init__(encoder.dim, size, grid, encoder.channels * encoder.patch**2, scheme.mlp)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.dim))
        scheme.token(self.mask_token)

    def forward(self, features: Features, keep: Int[Tensor, "b m"]) -> Float[Tensor, "b n p"]:
        encoded = self.embed(torch.cat([features.pooled[:, None], features.patches], dim=1))
        b, _, d = encoded.shape
        n = features.grid[0] * features.grid[1]
        x = self.mask_token.to(encoded.dtype).expand(b, n, d)
        x = x.scatter(1, keep[:, :, None].expand(-1, -1, d), encoded[:, 1:])
        return self.decode(x, features.grid, front=encoded[:, :1])  # with the pooled token


class Method(protocols.Method):
    """Encoder and decoder; the decoder is not exported."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        grid = encoder.grid(context.image_size, context.image_size)
        self.decoder = Decoder(encoder, config, grid)

    def _mask(
        self, key: Key, patches: Float[Tensor, "b n p"]
    ) -> tuple[Int[Tensor, "b m"], Bool[Tensor, "b n"]]:
        """Indices of the visible patches, and the mask of the hidden ones."""
        keep = random_keep(key, Stream.MASK, patches.shape[1], self.config.mask_share).to(patches.device)
        return keep, torch.ones(patches.shape[:2], device=patches.device).scatter(1, keep, 0.0).bool()

    def _predict(self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"]) -> Float[Tensor, "b n p"]:
        grid = self.encoder.grid(*images.shape[-2:])
        features = self.encoder.encode(self.encoder.tokenize(images, keep), grid, keep)
        return self.decoder(features, keep)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        (crops,) = batch.views
        images = crops[:, 0]
        patches = patches_of(images, self.encoder.patch)
        keep, mask = self._mask(batch.key, patches)

        target = normalised(patches.float()) if self.config.normalise_target else patches.float()
        predicted = self._predict(images, keep)
        loss = reconstruction.masked_mse(predicted, target, mask)
        with torch.no_grad():  # the best constant prediction is the targets' mean over the batch
            constant = target.mean(0, keepdim=True).expand_as(target)
            baseline = reconstruction.masked_mse(constant, target, mask)
        return StepOutput(loss, {"error_vs_mean_image": loss.detach() / baseline.clamp(min=1e-12)})

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.RECONSTRUCTION

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.decoder, "decoder")

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "b c h w"], key: Key) -> Reconstruction:
        """The images with predicted hidden patches."""
        keep, mask = self._mask(key, patches_of(images, self.encoder.patch))
        predicted = self._predict(images, keep)
        return masked_reconstruction(self.encoder, images, predicted, mask, self.config.normalise_target)
