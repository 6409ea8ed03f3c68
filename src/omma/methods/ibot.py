"""iBOT: self-distillation of whole images and of masked patches [Zhou 2021, arXiv 2111.07832].

DINO's student and teacher on two global and several local crops; in addition, blocks of the student's global
crops are hidden, and at each hidden patch the student predicts the prototypes that the teacher, which sees
the whole crop, assigns to it: the teacher is an online tokenizer for masked image modelling.

    L = H(t_cls(u), s_cls(v)) over views u != v  +  mean over hidden i of H(t_patch(u)_i, s_patch(u hidden)_i)

Costs: DINO's step, and the head on the hidden patches too (a seventh of all on average), the teacher's on all
patches where they are centred by a mean.
Exports: the average, `teacher`.
Choose it when patches matter (segmentation, correspondence), or as the base of DINOv2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omma import backbones
from omma.core import collectives, protocols
from omma.core.checks import at_least_zero, range_within_one, within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    HealthSignal,
    Needs,
    ParamGroup,
    Recipe,
    Schedule,
    StepOutput,
)
from omma.losses.distillation import Student, cross_entropies, hidden_patches, other_views
from omma.methods.shared import crops, self_distillation, signals
from omma.methods.shared.masked_crops import MaskedCrops
from omma.train import ema, param_groups
from omma.train.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class Config(self_distillation.SelfDistillation):
    """The paper's defaults, for ImageNet and multi-crop."""

    prototypes: int = 8192
    patch_weight: float = 1.0  # of the patches' loss
    mask_probability: float = 0.5  # of masking a global crop
    mask_share: tuple[float, float] = (0.1, 0.5)  # of its patches
    local_crops: int = 10
    global_scale: tuple[float, float] = (0.25, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        within_one(self, "mask_probability")
        range_within_one(self, "mask_share")
        at_least_zero(self, "patch_weight")


def needs(config: Config) -> Needs:
    """Separately embedded patches to hide; two images if Sinkhorn-Knopp balances a batch."""
    return self_distillation.needs(config, plain=True)


views = crops.multi_crop


def paper(image_size: int, model: str) -> Recipe:
    """ViT-S/16 on ImageNet: batch 1024, 800 epochs.

    `omma pretrain IMAGES --method ibot --recipe paper --model vit-s/16 --epochs 800`
    Only small networks train the prototypes' lengths, as the published code advises.
    """
    config = Config(prototype_gain=backbones.options(model).get("dim", 0) < 768)
    return Recipe(
        config=config, batch=1024, lr=5e-4 * 1024 / 256, rate_by_batch="linear", warmup_epochs=10,
        schedule=Schedule(ramp="closed"), weight_decay=0.04, weight_decay_end=0.4,
        decayed=("token", "position"), clip=3.0, clip_by="tensor", drop_path=0.1,
        encoder={"init": "dino", "interpolation": "offset"},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: DINO's small recipe, and fewer hidden patches of less weight.

    `omma pretrain cifar10_25k.zip --method ibot --model vit-n/4 --budget 10m` on two cores: k-NN 54.2 %,
    the untrained network's 27.9 (docs/benchmarks.md), both with 0.1.0's recipe.
    Early in training, patch features are mostly noise.
    """
    shared = self_distillation.small(image_size, plain=True)
    return self_distillation.small_recipe(
        Config(patch_weight=0.2, mask_probability=0.3, teacher_temp_warmup=30 / 800, **shared)
    )


class Method(protocols.Method):
    """Student and teacher, each an encoder and a head for both images and patches, and two centres."""

    centre: Tensor
    patch_centre: Tensor

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = self_distillation.head(config, encoder.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.token_dim))
        self.teacher = ema.teacher_of(encoder)
        self.teacher_head = ema.teacher_of(self.head)
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("patch_centre", torch.zeros(config.prototypes))

    def export_encoder(self) -> Backbone:
        return self.teacher

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c, b = self.config, len(batch.views[0])
        grid = self.encoder.grid(*batch.views[0].shape[-2:])
        least = max(1, (min(grid) // 3) ** 2)  # patches of a block, as in the published code
        masked = MaskedCrops.draw(self.encoder, batch, c.mask_probability, c.mask_share, least)

        prototypes, gain = self.head.last.weight, self.head.gain  # of both images and patches
        pooled, patches = masked.encode(self.encoder, self.mask_token)
        student = Student(self.head.bottleneck(pooled), prototypes, c.student_temp, gain=gain)
        bottleneck = self.head.bottleneck(masked.at_hidden(patches))
        patch_student = Student(bottleneck, prototypes, c.student_temp, gain=gain)

        with torch.no_grad():
            features, carry = self.teacher(masked.global_crops), None
            logits = self.teacher_head(features.pooled)
            if c.centring == "mean":  # over all patches, hidden or not
                every_patch = self.teacher_head.bottleneck(features.patches.flatten(0, 1))
                carry = torch.stack([logits.mean(0), self.teacher_head.mean(every_patch)])
                bottleneck = every_patch[masked.index]
            else:
                bottleneck = self.teacher_head.bottleneck(masked.at_hidden(features.patches))
            teacher = self_distillation.probabilities(c, logits, self.centre, clock).unflatten(0, (2, b))
            patch_teacher = self_distillation.lazy_probabilities(
                c, self.teacher_head, bottleneck[: masked.hidden], self.patch_centre, clock
            )

        images, patches = len(masked.mask), len(patch_student.features)
        loss, (image_loss, patch_loss) = cross_entropies(
            [
                (student, other_views(teacher, len(pooled) // b)),  # [eq. 1]
                (patch_student, hidden_patches(patch_teacher, masked.counts(), images, patches)),  # [eq. 2]
            ],
            scales=(1.0, c.patch_weight),
        )
        metrics = {"image_loss": image_loss, "patch_loss": patch_loss}
        return StepOutput(loss, metrics | self_distillation.collapse_stats(teacher), carry)

    @torch.no_grad()
    def after_step(self, clock: Clock, carries: Sequence[Tensor | None]) -> None:
        c = self.config
        momentum = cosine(c.momentum, 1.0, clock.progress)
        ema.update(self.teacher, self.encoder, momentum)
        ema.update(self.teacher_head, self.head, momentum)
        means = [carry for carry in carries if carry is not None]
        if not means:
            return
        images, patches = collectives.mean(torch.stack(means).mean(0))
        self.centre.lerp_(images, 1 - c.centre_momentum)
        self.patch_centre.lerp_(patches, 1 - c.centre_momentum)

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.DISTILLATION

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head.mlp, "head")
        yield from param_groups.standard(
            self.head.last, "prototypes", frozen_until=self.config.freeze_last_epochs
        )
        yield ParamGroup(label="mask token", params=[self.mask_token], decay=False)
