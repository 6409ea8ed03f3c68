"""SimMIM: predict raw pixels of masked patches by one linear layer [Xie 2021, arXiv 2111.09886].

Large square units of the image are hidden: a mask token replaces the embeddings of their patches. The encoder
processes all tokens, hidden ones too, and one linear layer on its features predicts the hidden pixels. This
works with hierarchical networks (Swin) as well as with ViTs.

    L = |x_M - y_M|_1 / (values in M),   M: the pixels of the masked patches

Costs: one view, all of its tokens, and next to no head: the cheapest step of the family on a ViT after MAE.
Choose it for masked image modelling on a Swin, or to fine-tune afterwards; its frozen features are weak
(k-NN), and need longer runs than those of methods that compare views.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from omma import backbones
from omma.backbones.layers.init import scheme_of
from omma.core import collectives, protocols
from omma.core.checks import above_zero, between, one_of, range_within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
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
from omma.core.recipe import added
from omma.losses import reconstruction
from omma.methods.shared import signals
from omma.methods.shared.masking import hide, random_units
from omma.methods.shared.pixel_decoding import masked_reconstruction, patches_of
from omma.ops.linear import linear
from omma.ops.patches import normalised
from omma.train import param_groups


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's defaults."""

    mask_share: float = 0.6
    unit: int = 32  # pixels along a side of a hidden unit, rounded to whole patches
    normalise_target: bool = False  # by each patch's mean and deviation, as in MAE
    scale: tuple[float, float] = (0.67, 1.0)
    resample: Literal["bicubic", "bilinear"] = added("bilinear", before="bicubic")

    def __post_init__(self) -> None:
        one_of("method.resample", self.resample, ("bicubic", "bilinear"))
        between(self, "mask_share")
        above_zero(self, "unit")
        range_within_one(self, "scale")


def needs(config: Config) -> Needs:
    """A backbone that embeds each patch separately: its neighbours' tokens must not show a hidden patch."""
    return Needs(plain=True)


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """One mild crop, flipped at random; no colour augmentation."""
    return (Crop(size=image_size, scale=config.scale, resample=config.resample),)


def paper(image_size: int, model: str) -> Recipe:
    """Swin-B (192 px, windows of 6) and ViT-B (224 px) on ImageNet: batch 2048, 800 epochs.

    `omma pretrain IMAGES --method simmim --recipe paper --model swin-b --image-size 192 --epochs 800`
    `omma pretrain IMAGES --method simmim --recipe paper --model beit-b/16 --epochs 800`
    Its ViT-B is BEiT's network: relative positions shared by all layers, and layer scale. The learning rate
    drops to a tenth after 700 of 800 epochs.
    """
    swin = backbones.family(model).hierarchical
    scale = 2048 / 512
    network: dict[str, Any] = {"bias": "shared", "layer_scale": 0.1, "pool": "mean"}
    if swin:
        wide = backbones.options(model).get("dim") == 192
        network = {"window": 12 if wide else 6} if image_size == 192 and "/w" not in model else {}
    return Recipe(
        config=Config(), batch=2048, lr=1e-4 * scale, rate_by_batch="linear",
        lr_end=1e-5 * scale, warmup=0.0125, warmup_epochs=10,
        schedule=Schedule(ramp="open", start=5e-7 * scale, late=True, drops=(0.875,), scaled=True),
        weight_decay=0.05, decayed=() if swin else ("mask_token", "table"), clip=5.0,
        drop_path=0.0 if swin else 0.1, encoder=network | {"init": "simmim"},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: units of an eighth to a quarter of the image.

    `omma pretrain cifar10_25k.zip --method simmim --model vit-n/4 --budget 10m` on two cores: k-NN 40.0 %,
    the untrained network's 28.0 (docs/benchmarks.md).
    """
    unit = max(8, image_size // 4) if image_size < 128 else 32
    config = Config(unit=unit, normalise_target=True, resample="bicubic")
    return Recipe(
        config=config, batch=128, lr=1.5e-3, lr_end=0.0, warmup=0.05, weight_decay=0.05, betas=(0.9, 0.95),
        clip=3.0, encoder={"pool": "mean", "positions": "sincos"},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder, mask token and a linear layer to pixels."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.unit = max(1, round(config.unit / encoder.patch))  # in patches
        if max(encoder.grid(context.image_size, context.image_size)) <= self.unit:
            raise ValueError(
                f"method.unit={config.unit} hides all of an image of {context.image_size} px "
                f"({encoder.name} has a feature every {encoder.patch} px): choose a smaller --method.unit "
                "or a larger --image-size"
            )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.token_dim))
        self.predict = nn.Linear(encoder.dim, encoder.channels * encoder.patch**2)
        scheme_of(encoder).token(self.mask_token)

    def _mask(self, key: Key, images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b n"]:
        grid = self.encoder.grid(*images.shape[-2:])
        return random_units(key, Stream.MASK, grid, self.unit, self.config.mask_share).to(images.device)

    def _predict(self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n p"]:
        tokens, grid = hide(self.encoder, images, mask, self.mask_token)
        features = self.encoder.encode(tokens, grid).patches
        return linear(features, self.predict.weight, self.predict.bias)

    def _target(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n p"]:
        patches = patches_of(images, self.encoder.patch).float()
        return normalised(patches) if self.config.normalise_target else patches

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        (crops,) = batch.views
        images = crops[:, 0]
        mask = self._mask(batch.key, images)
        count = collectives.mean(mask.sum().float())  # differs where units at the edge are smaller
        target = self._target(images)
        loss = reconstruction.masked_l1(self._predict(images, mask), target, mask, count)
        with torch.no_grad():  # a constant prediction: the targets' mean over the batch
            constant = target.mean(0, keepdim=True).expand_as(target)
            baseline = reconstruction.masked_l1(constant, target, mask, count)
        return StepOutput(loss, {"error_vs_mean_image": loss.detach() / baseline.clamp(min=1e-12)})

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.RECONSTRUCTION

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.predict, "head")
        yield ParamGroup(label="mask token", params=[self.mask_token], decay=False)

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "b c h w"], key: Key) -> Reconstruction:
        """The images with predicted hidden patches."""
        mask = self._mask(key, images)
        predicted = self._predict(images, mask)
        return masked_reconstruction(self.encoder, images, predicted, mask, self.config.normalise_target)
