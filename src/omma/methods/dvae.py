"""dVAE: a discrete variational autoencoder with Gumbel-softmax codes [Ramesh 2021, arXiv 2102.12092].

Each encoded patch gives a distribution over K codes. In training, a softmax with Gumbel noise relaxes a
sample from it, sharper as the temperature falls, and a small decoder reconstructs the image from these
mixtures of codes. A KL divergence from uniform keeps all codes in use.

    y = softmax((l + g) / tau),   g ~ Gumbel(0, 1),   tau: 1 -> 1/16
    L = -log p(x | D(y E)) + beta KL(softmax(l) || uniform)

Costs: one encoder pass, a small decoder's, and K random numbers and exponentials for each patch.
Choose it to train BEiT with the kind of tokenizer in its paper; `vqvae` is cheaper, and has no temperature.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omma.backbones.layers import init_linear
from omma.backbones.layers.decoder import PixelDecoder
from omma.core import collectives, protocols
from omma.core.checks import above_zero, one_of, within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Extras,
    HealthSignal,
    Key,
    ParamGroup,
    Recipe,
    Reconstruction,
    StepOutput,
)
from omma.core.random import Stream
from omma.losses import pixels, quantisation
from omma.methods.shared import gumbel, signals
from omma.methods.shared.pixel_decoding import decode, one_crop, patches_of, small_decoder
from omma.methods.shared.tokenizers import Tokenizing, code_use, codes_extras, reconstruction
from omma.ops.patches import unpatchify
from omma.train import param_groups
from omma.train.schedules import cosine

RECONSTRUCTIONS = ("laplace", "l1", "l2")


@dataclass(frozen=True, kw_only=True)
class Config(Tokenizing):
    """The paper's defaults [appendix A.2], with steps as shares of its 3,000,000, and transformers."""

    codes: int = 8192
    temp_start: float = 1.0
    temp: float = 1 / 16
    temp_share: float = 0.05  # of the run, in which the temperature falls, by a cosine
    kl: float = 6.6  # beta, relative to the log-likelihood of all values of a patch
    kl_share: float = 0.0017  # of the run, in which beta rises from 0, by a cosine
    reconstruction: str = "laplace"  # log-likelihood in nats; "l1" and "l2" need a smaller kl

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "temp_start", "temp")
        within_one(self, "temp_share", "kl_share")
        if self.kl < 0:
            raise ValueError(f"method.kl={self.kl}: must be 0 or more (the paper's: 6.6)")
        one_of("method.reconstruction", self.reconstruction, RECONSTRUCTIONS)


views = one_crop


def paper(image_size: int, model: str) -> Recipe:
    """250 million pictures of 256 px: batch 512, 3,000,000 steps, 8 px a code; no moving average of weights.

    `omma pretrain IMAGES --method dvae --recipe paper --model vit-b/8 --steps 3000000`
    """
    return Recipe(
        config=Config(), batch=512, lr=1e-4, lr_end=1.25e-6, warmup=0.0, weight_decay=1e-4,
        betas=(0.9, 0.999), clip=None, encoder={"pool": "mean"},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: 512 codes, a light decoder, a slower temperature schedule.

    `omma pretrain cifar10_25k.zip --method dvae --model vit-n/4 --budget 10m` on two cores: 315 of 512 codes
    in even use (perplexity of a batch), .08 of the mean image's squared error; k-NN 35.0 %, the untrained
    network's 27.9 (docs/benchmarks.md).
    """
    config = Config(codes=512, temp_share=0.5, kl=1.0, kl_share=0.1, **small_decoder(image_size))
    return Recipe(
        config=config, batch=128, lr=1e-3, lr_end=1e-5, warmup=0.05, weight_decay=1e-4, betas=(0.9, 0.99),
        clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder, a linear layer to the codes' logits, and the decoder, whose embedding is the codebook."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.logits = nn.Linear(encoder.dim, config.codes)
        init_linear(self.logits)
        grid = encoder.grid(context.image_size, context.image_size)
        self.values = encoder.channels * encoder.patch**2  # of a patch
        out = 2 * self.values if config.reconstruction == "laplace" else self.values
        self.decoder = PixelDecoder(config.codes, config.decoder_size(), grid, out)
        with torch.no_grad():  # a mixture of codes is one of embeddings, not a sum over K inputs
            nn.init.normal_(self.decoder.embed.weight)
        pre = context.preprocess
        for name in ("mean", "std"):  # of the pixels' normalisation; saved, since reconstructions need them
            value = (float(name == "std"),) * encoder.channels if pre is None else getattr(pre, name)
            self.register_buffer(name, torch.tensor(value)[:, None, None])

    def extras(self) -> Extras:
        """The layer that computes the codes' logits."""
        return codes_extras(self.logits.weight, self.logits.bias)

    def _image(self, out: Float[Tensor, "b n o"], grid: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Normalised images from the decoder's output."""
        patch = self.encoder.patch
        if self.config.reconstruction != "laplace":
            return unpatchify(out, patch, grid)
        x = pixels.unmap_pixels(out[..., : self.values].sigmoid())
        return (unpatchify(x, patch, grid) - self.mean) / self.std

    def _error(self, out: Float[Tensor, "b n o"], images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """Mean over all values: -log-likelihood in nats, absolute or squared error."""
        if self.config.reconstruction != "laplace":
            error = pixels.l1 if self.config.reconstruction == "l1" else pixels.l2
            return error(out, patches_of(images, self.encoder.patch))
        x = pixels.map_pixels((images.float() * self.std + self.mean).clamp(0, 1))
        target = patches_of(x, self.encoder.patch).clamp(pixels.EPSILON, 1 - pixels.EPSILON)
        mean, log_scale = out.split(self.values, dim=-1)
        return pixels.logit_laplace(mean, log_scale, target)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c = self.config
        (crops,) = batch.views
        images = crops[:, 0]
        features = self.encoder(images)
        logits = self.logits(features.patches).float()
        temperature = cosine(c.temp_start, c.temp, clock.progress / max(c.temp_share, 1e-9))
        beta = cosine(0.0, c.kl, clock.progress / max(c.kl_share, 1e-9))
        noise = gumbel.noise(batch.key, Stream.METHOD, (logits.shape[1], c.codes), logits.device)
        out = decode(self.decoder, gumbel.relaxed(logits, noise, temperature), features.grid).float()
        error, kl = self._error(out, images), quantisation.kl_to_uniform(logits)
        # the paper divides both terms by the number of values of an image [appendix A.2]
        loss = error + beta * kl / self.values

        with torch.no_grad():
            use = torch.bincount(logits.flatten(0, 1).argmax(1), minlength=c.codes).float()
            reconstructed = patches_of(self._image(out, features.grid), self.encoder.patch)
            target = patches_of(images, self.encoder.patch)
            metrics = {
                "error_vs_mean_image": pixels.against_mean_image(reconstructed, target),
                "kl": kl.detach(),
                **code_use(collectives.mean(use)),
            }
        return StepOutput(loss, metrics)

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.RECONSTRUCTION

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.logits, "codes")
        yield from param_groups.standard(self.decoder, "decoder")

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "b c h w"], key: Key) -> Reconstruction:
        """The images as decoded from each patch's most probable code."""
        features = self.encoder(images)
        codes = nn.functional.one_hot(self.logits(features.patches).argmax(-1), self.config.codes).float()
        out = decode(self.decoder, codes, features.grid).float()
        return reconstruction(images, self._image(out, features.grid))
