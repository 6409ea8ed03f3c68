"""MoCo v3: contrast against a momentum encoder's keys [Chen 2021, arXiv 2104.02057].

A view's query must match its key, the other view encoded by a moving average of the network, among the keys
of all images of the batch. Only queries pass a predictor. The patch embedding stays frozen at its random
initial values, which stabilises the training of ViTs.

    L = 2 t [ctr(q1, k2) + ctr(q2, k1)],   ctr(q, k) = -log exp(q k+ / t) / sum_k exp(q k / t)

Costs: two views through the encoder and, without gradients, through its average: a third more
multiply-adds than SimCLR.
Exports: the trained `encoder`.
Choose it when memory limits SimCLR to too small a batch, or with --method.queue for the smallest batches.

MoCo v1 and v2 [He 2019, arXiv 1911.05722; Chen 2020, arXiv 2003.04297] are close to --method.queue 65536
--method.predictor False --method.momentum 0.999 --method.momentum-end 0.999 --method.layers 2 --method.out
128 --method.freeze-patch-embed False (v1: layers 1, temperature .07). The views stay v3's, and so do the
head's batch norms over all processes (v1 and v2 have none, and shuffle the encoder's).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma import backbones
from omma.backbones.layers.heads import projector
from omma.core import collectives, dist, protocols
from omma.core.checks import above_zero, at_least_zero, one_of, range_within_one, within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
    HealthSignal,
    Needs,
    ParamGroup,
    Recipe,
    Schedule,
    StepOutput,
)
from omma.core.recipe import added
from omma.losses import contrastive
from omma.methods.shared import crops, signals
from omma.train import ema, param_groups
from omma.train.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class Config(crops.Photometric):
    """The paper's defaults, for ViT on ImageNet."""

    temperature: float = 0.2
    hidden: int = 4096
    out: int = 256
    layers: int = 3  # of the projector; 2 for ResNets
    predictor: bool = True
    momentum: float = 0.99
    momentum_end: float = 1.0  # by a cosine
    # a step's average has the momentum of the next step, at whose beginning the published code takes it
    momentum_next: bool = added(False, before=False)
    queue: int = 0  # keys of earlier batches to contrast with, as in v1 and v2; 0: the batch's own keys
    freeze_patch_embed: bool = True
    scale: tuple[float, float] = (0.08, 1.0)
    crop_size: int | None = None  # pixels of the views; None: the image size
    colour: float = 1.0  # strength of jitter; .5 suits small images
    blur: bool = True  # off under 64 px

    resample: Literal["bicubic", "bilinear"] = added("bilinear", before="bicubic")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("method.resample", self.resample, ("bicubic", "bilinear"))
        above_zero(self, "temperature", "hidden", "out", "layers")
        within_one(self, "momentum", "momentum_end")
        range_within_one(self, "scale")
        at_least_zero(self, "queue")


def needs(config: Config) -> Needs:
    """At least two images: to contrast, or, with a queue, for the batch norms' statistics."""
    contrasted = "each image is contrasted with the others of its batch"
    return Needs(batch=2, why_batch="its batch norms compare images" if config.queue else contrasted)


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """Two crops with different blur and solarisation."""
    size = config.crop_size or image_size
    return crops.pair(size, config.scale, config.colour, config.blur, config, config.resample)


def paper(image_size: int, model: str) -> Recipe:
    """ViT-S and ViT-B on ImageNet: batch 4096, 300 epochs, 40 of them warm-up.

    `omma pretrain IMAGES --method moco --recipe paper --model vit-b/16 --epochs 300`
    """
    heads = {"heads": 12} if model.startswith("vit-s/") else {}  # of 32, half as wide as elsewhere
    return Recipe(
        config=Config(momentum_next=True), batch=4096, lr=1.5e-4 * 4096 / 256, rate_by_batch="linear",
        lr_end=0.0, warmup=40 / 300, warmup_epochs=40, schedule=Schedule(ramp="open"), weight_decay=0.1,
        decayed=("token", "position", "table", "vector"), clip=None,
        encoder={"positions": "sincos", "init": "moco", **heads},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: lighter heads, milder views, a patch embedding that learns.

    `omma pretrain cifar10_25k.zip --method moco --model vit-n/4 --budget 10m` on two cores: k-NN 52.3 %,
    the untrained network's 27.9 (docs/benchmarks.md).
    """
    tiny, plain = image_size < 64, backbones.family(model).plain
    config = Config(
        temperature=0.2, hidden=512, out=128, layers=2, momentum=0.99, freeze_patch_embed=False,
        scale=(0.2, 1.0), colour=0.5 if tiny else 1.0, blur=not tiny,
        crop_size=crops.smaller(image_size, plain), resample="bicubic", **crops.SMALL,
    )  # fmt: skip
    return Recipe(
        config=config, batch=128, lr=1e-3 if plain else 2e-3, lr_end=2e-5, warmup=0.05, weight_decay=0.05,
        clip=None, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder, projector and predictor, and the moving averages of the first two."""

    queue: Tensor
    queue_at: Tensor

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        widths = [encoder.dim, *[config.hidden] * (config.layers - 1), config.out]
        self.head = projector(widths, last_norm=True)
        self.predictor = (
            projector([config.out, config.hidden, config.out], last_norm=True)
            if config.predictor
            else nn.Identity()
        )
        if config.freeze_patch_embed and encoder.plain:  # [section 4.2]
            stems = {name.rpartition(".")[0] for name in encoder.first_layers}
            for name, p in encoder.named_parameters():
                if name.rpartition(".")[0] in stems:
                    p.requires_grad_(False)
        self.key_encoder = ema.teacher_of(encoder)
        self.key_head = ema.teacher_of(self.head)
        if config.queue:
            self.register_buffer("queue", F.normalize(torch.randn(config.queue, config.out), dim=1))
            self.register_buffer("queue_at", torch.zeros((), dtype=torch.long))

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c = self.config
        first, second = (view[:, 0] for view in batch.views)
        if c.queue:
            q = self.predictor(self.head(self.encoder(first).pooled))
            with torch.no_grad():
                k = F.normalize(self.key_head(self.key_encoder(second).pooled).float(), dim=-1)
            loss = contrastive.infonce_queue(q, k, self.queue, c.temperature)
            return StepOutput(loss, self._metrics(q, k), k)
        # one view at a time: batch norms take their statistics from a single view [algorithm 1]
        one, two = (self.predictor(self.head(self.encoder(x).pooled)) for x in (first, second))
        with torch.no_grad():
            keys = [self.key_head(self.key_encoder(x).pooled) for x in (first, second)]
            all_one, all_two = (collectives.gather(k) for k in keys)
        offset = dist.rank() * len(first)
        loss = contrastive.infonce(one, all_two, c.temperature, offset)
        loss = loss + contrastive.infonce(two, all_one, c.temperature, offset)
        return StepOutput(2 * c.temperature * loss, self._metrics(one, keys[1]))

    def _metrics(self, q: Float[Tensor, "b d"], k: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        q = q.detach()
        return {"alignment": contrastive.alignment(q, k), "uniformity": contrastive.uniformity(k)}

    @torch.no_grad()
    def after_step(self, clock: Clock, carries: Sequence[Tensor | None]) -> None:
        progress = (clock.step + self.config.momentum_next) / max(clock.total, 1)
        momentum = cosine(self.config.momentum, self.config.momentum_end, progress)
        ema.update(self.key_encoder, self.encoder, momentum)
        ema.update(self.key_head, self.head, momentum)
        for keys in carries:
            if keys is not None:
                self._enqueue(collectives.gather(keys))

    def _enqueue(self, keys: Float[Tensor, "n d"]) -> None:
        """Replace the oldest keys by `keys`."""
        size = len(self.queue)
        keys = keys[-size:]
        rows = (self.queue_at + torch.arange(len(keys), device=keys.device)) % size
        self.queue[rows] = keys
        self.queue_at.add_(len(keys)).remainder_(size)

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.CONTRASTIVE

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
        yield from param_groups.standard(self.predictor, "predictor")
