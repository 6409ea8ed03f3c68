"""DINO: self-distillation with no labels [Caron 2021, arXiv 2104.14294].

A student sees small and large crops of an image, a teacher only the large ones. For every crop the student
learns to predict the teacher's soft assignment of the image to K prototypes. The teacher is the student's
moving average; its output is centred so that no prototype dominates, and sharpened so that it is not uniform.

    L = sum over views u != v of -softmax((t(u) - C) / tau_t) log softmax(s(v) / tau_s)

Costs: two global and several local crops through the student, the globals through the teacher: twice
SimCLR's multiply-adds with eight local crops of 96 px.
Exports: the average, `teacher`: the better of the two all through training [section 5.2].
Choose it for features that are used frozen (k-NN, retrieval), from 100,000 images on, with a GPU.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omma import backbones
from omma.core import collectives, protocols
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
from omma.losses.distillation import Student, cross_entropy, other_views
from omma.methods.shared import crops, self_distillation, signals
from omma.train import ema, param_groups
from omma.train.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class Config(self_distillation.SelfDistillation):
    """The paper's defaults, for ImageNet and multi-crop."""

    centrings = ("mean", "sinkhorn", "off")  # Sinkhorn-Knopp: table 7; off: only to study collapse


def needs(config: Config) -> Needs:
    """Two images if Sinkhorn-Knopp balances a batch."""
    return self_distillation.needs(config)


views = crops.multi_crop


def paper(image_size: int, model: str) -> Recipe:
    """ViT-S/16 on ImageNet: batch 1024, 100 to 800 epochs.

    `omma pretrain IMAGES --method dino --recipe paper --model vit-s/16 --epochs 100`
    As in the published code's command for the better ViT-S. Only small networks train the prototypes'
    lengths, as it advises.
    """
    config = Config(prototype_gain=backbones.options(model).get("dim", 0) < 768)
    return Recipe(
        config=config, batch=1024, lr=5e-4 * 1024 / 256, rate_by_batch="linear", warmup_epochs=10,
        schedule=Schedule(ramp="closed"), weight_decay=0.04, weight_decay_end=0.4,
        decayed=("token", "position"), clip=3.0, clip_by="tensor", drop_path=0.1,
        encoder={"init": "dino", "interpolation": "offset"},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: a head of few dimensions and sharp, balanced targets.

    `omma pretrain cifar10_25k.zip --method dino --model vit-n/4 --budget 10m` on two cores: k-NN 55.8 %,
    the untrained network's 27.9 (docs/benchmarks.md), both with 0.1.0's recipe.
    """
    config = Config(
        teacher_temp_warmup=0.3, **self_distillation.small(image_size, backbones.family(model).plain)
    )
    return self_distillation.small_recipe(config)


class Method(protocols.Method):
    """Student and teacher, each an encoder and a head, and the centre."""

    centre: Tensor

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = self_distillation.head(config, encoder.dim)
        self.teacher = ema.teacher_of(encoder)
        self.teacher_head = ema.teacher_of(self.head)
        self.register_buffer("centre", torch.zeros(config.prototypes))

    def export_encoder(self) -> Backbone:
        return self.teacher

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c, b = self.config, len(batch.views[0])
        first, second, *rest = batch.views
        global_crops = torch.cat([first[:, 0], second[:, 0]])
        local_crops = [local.transpose(0, 1).flatten(0, 1) for local in rest]

        tokens = [
            (self.encoder.tokenize(x), self.encoder.grid(*x.shape[-2:])) for x in (global_crops, *local_crops)
        ]
        pooled = torch.cat([f.pooled for f in self.encoder.encode_many(tokens)])  # view after view
        prototypes = self.head.last.weight
        student = Student(self.head.bottleneck(pooled), prototypes, c.student_temp, gain=self.head.gain)

        with torch.no_grad():
            logits = self.teacher_head(self.teacher(global_crops).pooled)
            teacher = self_distillation.probabilities(c, logits, self.centre, clock).unflatten(0, (2, b))

        loss = cross_entropy(student, other_views(teacher, len(pooled) // b))  # [eq. 3]
        return StepOutput(loss, self_distillation.collapse_stats(teacher), logits.mean(0))

    @torch.no_grad()
    def after_step(self, clock: Clock, carries: Sequence[Tensor]) -> None:
        c = self.config
        momentum = cosine(c.momentum, 1.0, clock.progress)
        ema.update(self.teacher, self.encoder, momentum)
        ema.update(self.teacher_head, self.head, momentum)
        if c.centring == "mean":
            mean = collectives.mean(torch.stack(list(carries)).mean(0))
            self.centre.lerp_(mean, 1 - c.centre_momentum)  # [eq. 4]

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.DISTILLATION

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head.mlp, "head")
        yield from param_groups.standard(
            self.head.last, "prototypes", frozen_until=self.config.freeze_last_epochs
        )
