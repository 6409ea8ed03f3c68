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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from omma.backbones.layers.heads import PrototypeHead
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
    StepOutput,
)
from omma.losses.distillation import Student, cross_entropies, hidden_patches, other_views
from omma.losses.koleo import koleo
from omma.methods.shared import crops, self_distillation, signals
from omma.methods.shared.masked_crops import MaskedCrops
from omma.train import ema, param_groups
from omma.train.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class Config(self_distillation.SelfDistillation):
    """The published code's settings of ViT-L/14 on ImageNet-22k."""

    ladder: int | None = None  # row of table 1, 0 to 11; overrides the options that rows change
    prototypes: int = 131_072
    untied: bool = True  # a separate head for patches
    head_bottleneck: int = 256  # the published run's head for images: 384
    teacher_temp_warmup: float = 30 / 500
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

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "layer_decay", "patch_embed_lr")
        within_one(self, "mask_probability", "layer_decay")
        range_within_one(self, "mask_share")
        at_least_zero(self, "koleo", "patch_weight")
        if self.ladder is not None and self.ladder not in range(len(LADDER)):
            raise ValueError(f"method.ladder={self.ladder}: choose a row from 0 to {len(LADDER) - 1}")


def needs(config: Config) -> Needs:
    """Separately embedded patches to hide; two images if a loss term compares images."""
    if config.ladder is not None:
        on = {switch.name for switch in LADDER[: config.ladder + 1]}
        centring = config.centring if "Sinkhorn-Knopp" in on else "mean"
        config = dataclasses.replace(config, koleo=config.koleo * ("KoLeo" in on), centring=centring)
    return self_distillation.needs(config, plain=True, koleo=config.koleo > 0)


views = crops.multi_crop


def paper(image_size: int, model: str) -> Recipe:
    """ViT-L/14 on ImageNet-22k: batch 3072, 625,000 steps.

    `omma pretrain IMAGES --method dinov2 --recipe paper --model dinov2-l/14 --steps 625000`
    The paper's SwiGLU with the same number of parameters: --method.ladder 11 (on vit-l/16; it changes patches
    to 14 px).
    The published code's short run, ViT-L/16 on ImageNet in 125,000 steps: --lr 0.0057 --batch-size 2048
    --method.layer-decay 0.9 --method.momentum 0.992 --method.centring mean --method.untied False
    --method.prototypes 65536 --method.teacher-temp-warmup 0.3 --model.drop-path 0.3.
    """
    batch, config = 3072, Config(local_size=crops.papers_local_size(image_size, model))
    return Recipe(
        config=config, batch=batch, lr=2e-4 * (batch / 1024) ** 0.5, warmup=80 / 500, weight_decay=0.04,
        weight_decay_end=0.2, clip=3.0, drop_path=0.4,
        encoder={"layer_scale": 1e-5, "drop_uniform": True, "drop_exact": True},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: a head of few dimensions, sharp targets, no LayerScale.

    `omma pretrain cifar10_25k.zip --method dinov2 --model vit-n/4 --budget 10m` on two cores: k-NN 57.0 %,
    the untrained network's 27.9 (docs/benchmarks.md). Early in training, patch features are mostly noise,
    so few are hidden, and their loss has a small weight.
    """
    shared = self_distillation.small(image_size, plain=True)
    config = Config(patch_weight=0.2, mask_probability=0.3, patch_embed_lr=1.0, **shared)
    return self_distillation.small_recipe(config)


# ---------------------------------------------------------------- the ladder
class Switch(NamedTuple):
    """One row of table 1: its change, and the paper's top-1 on ImageNet by k-NN and linear probe (ViT-L).

    change: from (the previous row's recipe, the last row's recipe) to this row's.
    """

    name: str
    change: Callable[[Recipe, Recipe], Recipe]
    knn: float
    linear: float


def _configured(recipe: Recipe, **options: Any) -> Recipe:
    return dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, **options))


def _method(*names: str) -> Callable[[Recipe, Recipe], Recipe]:
    """Set these options of the method to the values of the last row."""
    return lambda r, end: _configured(r, **{name: getattr(end.config, name) for name in names})


def _encoder(**options: Any) -> Callable[[Recipe, Recipe], Recipe]:
    return lambda r, end: dataclasses.replace(r, encoder={**r.encoder, **options})


def _momentum_at(momentum: float, times: float) -> float:
    """The momentum of a teacher that follows the student `times` as fast."""
    return max(0.0, 1 - (1 - momentum) * times)


def _ibot(end: Recipe) -> Recipe:
    """The recipe before all changes: tied heads of few prototypes, centring, plain blocks.

    The teacher's momentum relates to the last row's as iBOT's .996 to .994.
    """
    c = end.config
    start = _configured(
        end, prototypes=max(2, c.prototypes // 16), untied=False, centring="mean", koleo=0.0, layer_decay=1.0,
        patch_embed_lr=1.0, momentum=_momentum_at(c.momentum, 2 / 3),
        teacher_temp_warmup=c.teacher_temp_warmup / 2,
    )  # fmt: skip
    deep = ("layer_scale", "drop_uniform", "drop_exact", "mlp")
    encoder = {k: v for k, v in end.encoder.items() if k not in deep}
    return dataclasses.replace(
        start, encoder=encoder, drop_path=0.0, batch=max(2, end.batch // 3), lr=end.lr / 2 / 3**0.5,
        warmup=end.warmup / 2, weight_decay_end=0.4,
    )  # fmt: skip


def _reproduced(r: Recipe, end: Recipe) -> Recipe:
    """The settings of the authors' code: a higher rate, a faster teacher (.992), a slow patch embedding."""
    r = _method("layer_decay", "patch_embed_lr")(r, end)
    r = _configured(r, momentum=_momentum_at(end.config.momentum, 4 / 3))
    return dataclasses.replace(r, lr=r.lr * 2, weight_decay_end=end.weight_decay_end)


def _deep(r: Recipe, end: Recipe) -> Recipe:
    scaled = _encoder(layer_scale=1e-5, drop_uniform=True, drop_exact=True)(r, end)
    return dataclasses.replace(scaled, drop_path=end.drop_path or 0.3)


def _warmed(r: Recipe, end: Recipe) -> Recipe:
    return dataclasses.replace(_method("teacher_temp_warmup")(r, end), warmup=end.warmup)


def _tripled(r: Recipe, end: Recipe) -> Recipe:
    return dataclasses.replace(r, batch=end.batch, lr=end.lr)


LADDER = (
    Switch("iBOT", lambda r, end: _ibot(end), 72.9, 82.3),
    Switch("(reproduction)", _reproduced, 74.5, 83.2),
    Switch("LayerScale, stochastic depth", _deep, 75.4, 82.0),
    Switch("128k prototypes", _method("prototypes"), 76.6, 81.9),
    Switch("KoLeo", _method("koleo"), 78.9, 82.5),
    Switch("SwiGLU", _encoder(mlp="swiglu"), 78.7, 83.1),
    Switch("patch 14", _encoder(patch="7/8"), 78.9, 83.5),
    Switch("teacher momentum .994", _method("momentum"), 79.4, 83.6),
    Switch("warm-up schedules", _warmed, 80.5, 83.8),
    Switch("batch 3k", _tripled, 81.7, 84.7),
    Switch("Sinkhorn-Knopp", _method("centring"), 81.7, 84.7),
    Switch("untied heads", _method("untied"), 82.0, 84.5),
)


def adapted(recipe: Recipe, model: Mapping[str, Any]) -> Recipe:
    """The recipe of the row `ladder`; without one, the recipe unchanged.

    model: the backbone's options before the changes. Raises ValueError if it lacks options that rows change.
    """
    row = recipe.config.ladder
    if row is None:
        return recipe
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
    if "mlp" in encoder:  # the same number of parameters with three matrices as with two
        encoder["hidden"] = max(8, round(int(model["hidden"]) * 2 / 3 / 8) * 8)
    return dataclasses.replace(changed, encoder=encoder)


class Method(protocols.Method):
    """Student and teacher, each an encoder and heads, and the centres where assignments are centred."""

    centre: Tensor
    patch_centre: Tensor

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = self._head(encoder)
        self.patch_head = self._head(encoder) if config.untied else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.token_dim))
        self.teacher = ema.teacher_of(encoder)
        self.teacher_head = ema.teacher_of(self.head)
        self.teacher_patch_head = None if self.patch_head is None else ema.teacher_of(self.patch_head)
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("patch_centre", torch.zeros(config.prototypes))

    def _head(self, encoder: Backbone) -> PrototypeHead:
        c = self.config
        return PrototypeHead(encoder.dim, c.prototypes, c.head_hidden, c.head_bottleneck)

    def export_encoder(self) -> Backbone:
        return self.teacher

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c, b = self.config, len(batch.views[0])
        rows, columns = self.encoder.grid(*batch.views[0].shape[-2:])
        least = max(1, round(4 / 256 * rows * columns))  # patches of a block: 4 of 16 x 16 in the code
        masked = MaskedCrops.draw(self.encoder, batch, c.mask_probability, c.mask_share, least)

        patch_head = self.patch_head or self.head
        pooled, patches = masked.encode(self.encoder, self.mask_token)
        student = Student(self.head.bottleneck(pooled), self.head.last.weight, c.student_temp)
        bottleneck = patch_head.bottleneck(masked.at_hidden(patches))
        patch_student = Student(bottleneck, patch_head.last.weight, c.student_temp)

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
                for x in pooled[: 2 * b].float().chunk(2)
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
        c = self.config
        yield from param_groups.layerwise(self.encoder, "encoder", c.layer_decay, c.patch_embed_lr)
        heads = {"head": self.head, "patch head": self.patch_head}
        for label, head in heads.items():
            if head is not None:
                yield from param_groups.standard(head.mlp, label)
                last = f"{label}'s prototypes"
                yield from param_groups.standard(head.last, last, frozen_until=c.freeze_last_epochs)
        rate = c.layer_decay ** (len(self.encoder.by_depth()) - 1)  # as for the patch embedding
        yield ParamGroup(label="mask token", params=[self.mask_token], lr_scale=rate, decay=False)
