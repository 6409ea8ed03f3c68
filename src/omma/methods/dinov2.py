"""DINOv2: iBOT, changed step by step to scale [Oquab 2023, arXiv 2304.07193].

Student and teacher as in DINO and iBOT, with separate heads for images and for hidden patches. The teacher's
assignments are balanced over the whole batch (Sinkhorn-Knopp) instead of centred, and images are pushed away
from their nearest neighbour in the batch (KoLeo), so that features spread evenly.

    L = H(t_cls, s_cls) + H(t_patch, s_patch on hidden) - w mean_i log min_j |x_i - x_j|

Costs: iBOT's step, a few passes over the batch's assignments, and larger heads and batches.
Exports: the average, `teacher`.
Choose it for features that are used frozen, from 100,000 images on with a GPU; for less data use its small
recipe.

--method.ladder N is row N of the paper's table 1, from iBOT (0) to DINOv2 (11), with one change per row. A
short run at high resolution comes last: omma pretrain IMAGES --method dinov2 --init RUN --image-size 518.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from omma import backbones
from omma.core import collectives, dist, protocols
from omma.core.checks import above_zero, at_least_zero, range_within_one, within_one
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
from omma.core.recipe import added
from omma.losses.distillation import Student, cross_entropies, hidden_patches, other_views
from omma.losses.koleo import koleo
from omma.methods.shared import crops, self_distillation, signals
from omma.methods.shared.ladder import LADDER, configured
from omma.methods.shared.masked_crops import MaskedCrops
from omma.ops.directions import upcast
from omma.train import ema, param_groups
from omma.train.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class Config(self_distillation.SelfDistillation):
    """The published code's settings of ViT-L/14 on ImageNet-22k."""

    ladder: int | None = None  # row of table 1, 0 to 11; overrides the options that rows change
    # the published code's short run instead; overrides the options that it changes
    short: bool = added(False, before=False)
    prototypes: int = 131_072
    untied: bool = True  # a separate head for patches
    # of a separate head for patches; None: as `head_bottleneck`
    patch_head_bottleneck: int | None = added(None, before=None)
    teacher_temp_by: Literal["epoch", "step"] = added("step", before="step")
    centring: str = "sinkhorn"  # or "mean"
    koleo: float = 0.1  # weight; 0 switches it off
    momentum: float = 0.994
    patch_weight: float = 1.0
    mask_probability: float = 0.5
    mask_share: tuple[float, float] = (0.1, 0.5)
    layer_decay: float = 1.0  # of the learning rate, for each layer further from the end
    patch_embed_lr: float = 0.2
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)

    # the published code's `GaussianBlur(p=p)` blurs with probability 1 - p, and its weights were made so
    blur_p: tuple[float, float, float] = added((0.0, 0.9, 0.5), before=(1.0, 0.1, 0.5))
    blur_as: Literal["pillow", "gaussian", "taps9", "zeros"] = added("taps9", before="gaussian")

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "layer_decay", "patch_embed_lr")
        within_one(self, "mask_probability", "layer_decay")
        range_within_one(self, "mask_share")
        at_least_zero(self, "koleo", "patch_weight")
        if self.ladder is not None and self.ladder not in range(len(LADDER)):
            raise ValueError(f"method.ladder={self.ladder}: choose a row from 0 to {len(LADDER) - 1}")
        if self.ladder is not None and self.short:
            raise ValueError("method.short and method.ladder are different runs: choose one")


def needs(config: Config) -> Needs:
    """Separately embedded patches to hide; two images if a loss term compares images."""
    if config.ladder is not None:
        on = {switch.name for switch in LADDER[: config.ladder + 1]}
        centring = config.centring if "Sinkhorn-Knopp" in on else "mean"
        config = dataclasses.replace(config, koleo=config.koleo * ("KoLeo" in on), centring=centring)
    return self_distillation.needs(config, plain=True, koleo=config.koleo > 0)


views = crops.multi_crop


def paper(image_size: int, model: str) -> Recipe:
    """ViT-L/14 on ImageNet-22k: batch 3072, 625,000 steps; an epoch is 1,250 steps.

    `omma pretrain IMAGES --method dinov2 --recipe paper --model dinov2-l/14 --steps 625000`
    The published code's short run, ViT-L/16 on ImageNet:
    `omma pretrain IMAGES --method dinov2 --recipe paper --model vit-l/16 --steps 125000 --method.short True`
    """
    config = Config(
        local_size=crops.papers_local_size(image_size, model), head_bottleneck=384, patch_head_bottleneck=256,
        prototype_gain=True,
    )  # fmt: skip
    encoder: dict[str, Any] = {"init": "dinov2", "interpolation": "offset"}
    encoder |= {"layer_scale": 1e-5, "drop_uniform": True, "drop_exact": True}
    known = backbones.options(model)
    if "mlp" in known:
        encoder |= {"mlp": "swiglu", "hidden": swiglu_width(known["hidden"])}
    return Recipe(
        config=config, batch=3072, lr=2e-4 * 3**0.5, warmup=80 / 500, warmup_epochs=80, epoch_steps=1250,
        schedule=Schedule(ramp="closed"), weight_decay=0.04, weight_decay_end=0.2,
        decayed=("token", "position"), clip=3.0, clip_by="part", drop_path=0.4, encoder=encoder,
    )  # fmt: skip


def swiglu_width(hidden: int) -> int:
    """Width of a SwiGLU of as many parameters as an MLP, a multiple of 8, as the published code has it."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: a head of few dimensions, sharp targets, no LayerScale.

    `omma pretrain cifar10_25k.zip --method dinov2 --model vit-n/4 --budget 10m` on two cores: k-NN 57.0 %,
    the untrained network's 27.9 (docs/benchmarks.md), both with 0.1.0's recipe.
    Early in training, patch features are mostly noise, so few are hidden, and their loss has a small weight.
    """
    shared = self_distillation.small(image_size, plain=True)
    config = Config(
        patch_weight=0.2, mask_probability=0.3, patch_embed_lr=1.0, teacher_temp_warmup=30 / 500, **shared
    )
    return self_distillation.small_recipe(config)


def _short(recipe: Recipe) -> Recipe:
    """vitl16_short.yaml and its defaults: 100 epochs, a faster teacher, tied heads, centring."""
    changed = configured(
        recipe, prototypes=65_536, head_bottleneck=256, untied=False, centring="mean", momentum=0.992,
        layer_decay=0.9,
    )  # fmt: skip
    encoder = {k: v for k, v in recipe.encoder.items() if k not in ("mlp", "hidden")}
    return dataclasses.replace(
        changed, batch=2048, lr=4e-3 * 2**0.5, warmup=0.1, warmup_epochs=10, weight_decay_end=0.4,
        drop_path=0.3, encoder=encoder,
    )  # fmt: skip


def adapted(recipe: Recipe, model: Mapping[str, Any]) -> Recipe:
    """The recipe of the row `ladder`, or of the run `short`; without either, the recipe unchanged.

    model: the backbone's options before the changes. Raises ValueError if it lacks options that rows change.
    """
    row = recipe.config.ladder
    if row is None:
        return _short(recipe) if recipe.config.short else recipe
    if missing := [name for name in ("patch", "mlp", "hidden", "layer_scale") if name not in model]:
        raise ValueError(
            f"method.ladder changes the backbone's {', '.join(missing)}, and this one has no such options: "
            "choose a plain ViT (--model vit-s/16)"
        )
    changed = recipe
    for switch in LADDER[: row + 1]:
        changed = switch.change(changed, recipe)
    encoder = dict(changed.encoder)
    if "patch" in encoder:  # 14 instead of 16
        encoder["patch"] = max(2, round(int(model["patch"]) * 7 / 8))
    if "mlp" in encoder:
        encoder["hidden"] = swiglu_width(int(model["hidden"]))
    return dataclasses.replace(changed, encoder=encoder)


class Method(protocols.Method):
    """Student and teacher, each an encoder and heads, and the centres where assignments are centred."""

    centre: Tensor
    patch_centre: Tensor

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = self_distillation.head(config, encoder.dim)
        width = config.patch_head_bottleneck
        self.patch_head = self_distillation.head(config, encoder.dim, width) if config.untied else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.token_dim))
        self.teacher = ema.teacher_of(encoder)
        self.teacher_head = ema.teacher_of(self.head)
        self.teacher_patch_head = None if self.patch_head is None else ema.teacher_of(self.patch_head)
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("patch_centre", torch.zeros(config.prototypes))

    def export_encoder(self) -> Backbone:
        return self.teacher

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c, b = self.config, len(batch.views[0])
        rows, columns = self.encoder.grid(*batch.views[0].shape[-2:])
        least = max(1, round(4 / 256 * rows * columns))  # patches of a block: 4 of 16 x 16 in the code
        masked = MaskedCrops.draw(self.encoder, batch, c.mask_probability, c.mask_share, least)

        patch_head = self.patch_head or self.head
        pooled, patches = masked.encode(self.encoder, self.mask_token)
        gain = self.head.gain
        student = Student(self.head.bottleneck(pooled), self.head.last.weight, c.student_temp, gain=gain)
        bottleneck = patch_head.bottleneck(masked.at_hidden(patches))
        gain = gain if patch_head is self.head else patch_head.gain
        patch_student = Student(bottleneck, patch_head.last.weight, c.student_temp, gain=gain)

        with torch.no_grad():
            features = self.teacher(masked.global_crops)
            bottleneck = self.teacher_head.bottleneck(features.pooled)
            teacher = self_distillation.probabilities(
                c, self.teacher_head.cosines(bottleneck), self.centre, clock
            )
            teacher_patch_head = self.teacher_patch_head or self.teacher_head
            patch_bottleneck = teacher_patch_head.bottleneck(masked.at_hidden(features.patches))
            patch_bottleneck = patch_bottleneck[: masked.hidden]
            patch_teacher = self_distillation.lazy_probabilities(
                c, teacher_patch_head, patch_bottleneck, self.patch_centre, clock
            )

        stats = self_distillation.collapse_stats(teacher)
        teacher = other_views(teacher.unflatten(0, (2, b)), len(pooled) // b)
        images, rows = len(masked.mask), len(patch_student.features)
        loss, (image_loss, patch_loss) = cross_entropies(
            [
                (student, teacher),
                (patch_student, hidden_patches(patch_teacher, masked.counts(), images, rows)),
            ],
            scales=(1.0, c.patch_weight),
        )
        metrics = {"image_loss": image_loss, "patch_loss": patch_loss, **stats}
        if c.koleo:  # for each view on its own: two views of an image are meant to be neighbours
            first, second = (
                koleo(x, collectives.gather(x.contiguous()), dist.rank() * b)
                for x in upcast(pooled[: 2 * b]).chunk(2)
            )
            loss = loss + c.koleo * (first + second)
            metrics["koleo"] = ((first + second) / 2).detach()
        if c.centring == "sinkhorn":
            return StepOutput(loss, metrics, None)
        sums = masked.hidden * teacher_patch_head.mean(patch_bottleneck)
        return StepOutput(loss, metrics, (self.teacher_head.mean(bottleneck), sums, float(masked.hidden)))

    @torch.no_grad()
    def after_step(self, clock: Clock, carries: Sequence[Any]) -> None:
        c = self.config
        momentum = cosine(c.momentum, 1.0, clock.progress)
        ema.update(self.teacher, self.encoder, momentum)
        ema.update(self.teacher_head, self.head, momentum)
        if self.teacher_patch_head is not None and self.patch_head is not None:
            ema.update(self.teacher_patch_head, self.patch_head, momentum)
        if c.centring == "sinkhorn":
            return
        images, patches, counts = zip(*carries, strict=True)
        self.centre.lerp_(collectives.mean(torch.stack(images).mean(0)), 1 - c.centre_momentum)
        number = collectives.total(torch.tensor(sum(counts), device=self.centre.device))
        if number > 0:  # a batch may have no hidden patch
            self.patch_centre.lerp_(
                collectives.total(torch.stack(patches).sum(0)) / number, 1 - c.centre_momentum
            )

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.DISTILLATION

    def groups(self) -> Iterable[ParamGroup]:
        """Parts are the published code's sub-modules; its last layers' moments age while they stand still."""
        c = self.config
        yield from param_groups.layerwise(
            self.encoder, "encoder", c.layer_decay, c.patch_embed_lr, part="encoder"
        )
        heads = {"head": self.head, "patch head": self.patch_head}
        for label, head in heads.items():
            if head is not None:
                yield from param_groups.standard(head.mlp, label, part=label)
                last, until = f"{label}'s prototypes", c.freeze_last_epochs
                yield from param_groups.standard(head.last, last, frozen_until=until, ages=True, part=label)
        rate = c.layer_decay ** (len(self.encoder.by_depth()) - 1)  # as for the patch embedding
        yield ParamGroup(
            label="mask token", params=[self.mask_token], lr_scale=rate, decay=False, part="encoder"
        )
