"""VQ-VAE: images as grids of codes from a learned codebook [van den Oord 2017, arXiv 1711.00937].

Each encoded patch is replaced by the nearest of K codes, from which a small decoder reconstructs the image.
Gradients skip the replacement (straight-through), and a commitment loss pulls encodings towards their codes.
Codes are moving averages of the encodings assigned to them [Razavi 2019, arXiv 1906.00446]; unused codes are
moved to encodings drawn from the batch.

    k = argmin_j |z - e_j|,   L = |x - D(z + sg[e_k - z])|^2 + beta |z - sg[e_k]|^2
    N_j <- g N_j + (1 - g) n_j,   m_j <- g m_j + (1 - g) sum_{k(z) = j} z,   e_j = m_j / N_j

Costs: one encoder pass and a small decoder's for each image; each patch is compared with K codes.
Choose it to train a tokenizer of your own images for BEiT (`--method beit --method.tokenizer RUN`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers import init_linear
from omma.backbones.layers.decoder import PixelDecoder
from omma.core import collectives, protocols, random
from omma.core.checks import above_zero, one_of
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
from omma.methods.shared import signals
from omma.methods.shared.pixel_decoding import decode, one_crop, patches_of, small_decoder
from omma.methods.shared.tokenizers import Tokenizing, code_use, codes_extras, reconstruction
from omma.ops.patches import unpatchify
from omma.train import param_groups

LOSSES = {"l1": pixels.l1, "l2": pixels.l2}
ROWS = 8192  # encodings compared with the codes at a time


@dataclass(frozen=True, kw_only=True)
class Config(Tokenizing):
    """Razavi's defaults [table 5]; transformers in place of its convolutions."""

    codes: int = 512
    code_dim: int = 64
    normalised: bool = False  # codes and encodings of length 1, as in ViT-VQGAN and BEiT v2
    commitment: float = 0.25
    decay: float = 0.99  # of the codes' moving averages
    revive: float = 0.1  # a code used less than this share of the mean use is moved; 0: never
    reconstruction: str = "l2"  # or "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "code_dim")
        for name in ("decay", "revive"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"method.{name}={getattr(self, name)}: must lie in [0, 1)")
        if self.commitment < 0:
            raise ValueError(f"method.commitment={self.commitment}: must be 0 or more (the paper's: .25)")
        one_of("method.reconstruction", self.reconstruction, LOSSES)


views = one_crop


def paper(image_size: int, model: str) -> Recipe:
    """ImageNet: 8192 codes of length 1, as in BEiT v2's tokenizer [Peng 2022, arXiv 2208.06366], of pixels.

    (That one reconstructs CLIP's features: cosine, commitment 1, crops from .08, a decoder of 3 x 768.)
    `omma pretrain IMAGES --method vqvae --recipe paper --model vit-b/16 --epochs 100`
    """
    config = Config(codes=8192, code_dim=32, normalised=True)
    return Recipe(
        config=config, batch=512, lr=2e-4, lr_end=1e-5, warmup=0.1, weight_decay=1e-4, betas=(0.9, 0.99),
        clip=None, encoder={"pool": "mean"},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: 512 codes of length 1, a light decoder.

    `omma pretrain cifar10_25k.zip --method vqvae --model vit-n/4 --steps 600`: 360 of 512 codes in even use
    (perplexity of a batch), .12 of the mean image's squared error.
    """
    config = Config(codes=512, code_dim=16, normalised=True, **small_decoder(image_size))
    return Recipe(
        config=config, batch=128, lr=1e-3, lr_end=1e-5, warmup=0.05, weight_decay=1e-4, betas=(0.9, 0.99),
        clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class CodeStats(NamedTuple):
    """A micro-batch's statistics for the codebook's update."""

    counts: Float[Tensor, "k"]  # encodings assigned to each code ...
    sums: Float[Tensor, "k e"]  # ... and their sum
    offers: Float[Tensor, "r e"]  # randomly drawn encodings that may replace unused codes ...
    lots: Int[Tensor, "r"]  # ... in the order of these random numbers


class Codebook(nn.Module):
    """K codes as moving averages of the encodings assigned to them [Razavi 2019, section 3.1].

    All codes are unused at the start, so the first update moves them all to encodings.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int, normalised: bool) -> None:
        super().__init__()
        self.normalised = normalised
        self.register_buffer("codes", self.placed(torch.randn(codes, dim)))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))

    def placed(self, z: Float[Tensor, "*b e"]) -> Float[Tensor, "*b e"]:
        """Encodings in the codes' space: on the unit sphere if `normalised`."""
        return F.normalize(z.float(), dim=-1) if self.normalised else z.float()

    @torch.no_grad()
    def linear(
        self, weight: Float[Tensor, "e d"], bias: Float[Tensor, "e"]
    ) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k"]]:
        """W and b for which argmax(W f + b) is the code nearest to z = weight f + bias.

        argmin |z - e|^2 = argmax(e.z - |e|^2 / 2); with cosines, e.z / |z|, |z| does not matter.
        """
        return self.codes @ weight.float(), self.codes @ bias.float() - self._half_squares()

    def _half_squares(self) -> Float[Tensor, "k"] | float:
        """|e|^2 / 2 of each code; 0 where codes are normalised and it does not matter."""
        return 0.0 if self.normalised else self.codes.square().sum(1) / 2

    @torch.no_grad()
    def nearest(self, z: Float[Tensor, "m e"]) -> Int[Tensor, "m"]:
        """The index of each encoding's code, in chunks to save memory."""
        half = self._half_squares()
        return torch.cat([(chunk.float() @ self.codes.T - half).argmax(1) for chunk in z.split(ROWS)])

    @torch.no_grad()
    def stats(self, z: Float[Tensor, "m e"], index: Int[Tensor, "m"], lots: Int[Tensor, "m"]) -> CodeStats:
        """Statistics of encodings with the codes `index`; lots: random numbers that order the offers."""
        counts = torch.bincount(index, minlength=len(self.codes)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, index, z)
        order = lots.argsort(stable=True)[: len(self.codes)]
        return CodeStats(counts, sums, z[order], lots[order])

    @torch.no_grad()
    def update(self, micro_batches: Sequence[CodeStats], decay: float, revive: float) -> None:
        """Update the moving averages from all micro-batches and processes; move unused codes.

        N is smoothed, (N + eps) / (sum N + K eps) sum N, as in the published code. Codes used less than
        `revive` of the mean get an offered encoding as code and sum, and the mean use.
        """
        counts = collectives.total(torch.stack([m.counts for m in micro_batches]).sum(0))
        sums = collectives.total(torch.stack([m.sums for m in micro_batches]).sum(0))
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        total, k, eps = self.counts.sum(), len(self.codes), 1e-5
        smoothed = (self.counts + eps) / (total + k * eps) * total
        used = self.counts > 0
        self.codes[used] = self.placed(self.sums / smoothed[:, None])[used]
        if not revive:
            return
        offers = collectives.gather(torch.cat([m.offers for m in micro_batches]))
        lots = collectives.gather(torch.cat([m.lots for m in micro_batches])[:, None])[:, 0]
        offers = offers[lots.argsort(stable=True)]
        dead = (self.counts < revive * total / k).nonzero()[: len(offers), 0]
        self.codes[dead] = offers[: len(dead)]
        self.counts[dead] = total / k
        self.sums[dead] = offers[: len(dead)] * total / k


class Method(protocols.Method):
    """Encoder, a linear layer to the codes' width, the codebook and the decoder."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.project = nn.Linear(encoder.dim, config.code_dim)
        init_linear(self.project)
        self.codebook = Codebook(config.codes, config.code_dim, config.normalised)
        grid = encoder.grid(context.image_size, context.image_size)
        values = encoder.channels * encoder.patch**2  # of a patch
        self.decoder = PixelDecoder(config.code_dim, config.decoder_size(), grid, values)

    def extras(self) -> Extras:
        """The linear map from the encoder's features to codes."""
        return codes_extras(*self.codebook.linear(self.project.weight, self.project.bias))

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Encodings [b, n, e], their codes [b, n, e], the codes' indices [b n], and the grid."""
        features = self.encoder(images)
        z = self.codebook.placed(self.project(features.patches))
        index = self.codebook.nearest(z.detach().flatten(0, 1))
        return z, self.codebook.codes[index].view_as(z), index, features.grid

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        (crops,) = batch.views
        images = crops[:, 0]
        target = patches_of(images, self.encoder.patch)
        z, code, index, grid = self._encode(images)
        predicted = decode(self.decoder, z + (code - z).detach(), grid)  # straight-through gradients
        error = LOSSES[self.config.reconstruction](predicted, target)
        commitment = quantisation.commitment(z, code)
        loss = error + self.config.commitment * commitment

        with torch.no_grad():
            words = random.bits(batch.key, Stream.METHOD, 2 * z.shape[1]).astype(np.int64)
            lots = torch.from_numpy((words[:, ::2] << 30) + words[:, 1::2]).flatten().to(images.device)
            stats = self.codebook.stats(z.detach().flatten(0, 1), index, lots)
            metrics = {
                "error_vs_mean_image": pixels.against_mean_image(predicted, target),
                "commitment": commitment.detach(),
                **code_use(collectives.mean(stats.counts)),
            }
        return StepOutput(loss, metrics, stats)

    def after_step(self, clock: Clock, carries: Sequence[CodeStats]) -> None:
        self.codebook.update(carries, self.config.decay, self.config.revive)

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.RECONSTRUCTION

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.project, "codes")
        yield from param_groups.standard(self.decoder, "decoder")

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "b c h w"], key: Key) -> Reconstruction:
        """The images as decoded from their codes."""
        _, code, _, grid = self._encode(images)
        decoded = unpatchify(decode(self.decoder, code, grid).float(), self.encoder.patch, grid)
        return reconstruction(images, decoded)
