"""iBOT: self-distillation of whole images and of masked patches [Zhou 2021, arXiv 2111.07832].

DINO's student and teacher on two global and several local crops; beside that the student's global crops are
partly hidden, in blocks, and at each hidden patch the student must say what the teacher, which sees the whole
crop, says there: the teacher is the tokenizer of masked image modelling, and learns with it.

    L = H(t_cls(u), s_cls(v)) over views u != v  +  mean over hidden i of H(t_patch(u)_i, s_patch(u hidden)_i)

Costs: DINO's step, and the head on the hidden patches too (a seventh of all on average).
Choose it when patches matter (segmentation, correspondence), or as the base of DINOv2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from omma import dist, protocols
from omma.data import plans
from omma.errors import above_zero, one_of, range_within_one, within_one
from omma.heads import PrototypeHead
from omma.losses import distillation
from omma.ops import ema, groups, statistics
from omma.ops.masking import hide, view_masks
from omma.ops.schedules import cosine, linear
from omma.ops.sinkhorn import sinkhorn
from omma.protocols import Backbone, Batch, Clock, Crop, Given, Key, Needs, ParamGroup, Recipe, StepOutput


@dataclass(frozen=True, kw_only=True)
class Config(plans.MultiCrop):
    """The paper's defaults, for ImageNet and multi-crop."""

    prototypes: int = 8192
    head_hidden: int = 2048
    head_bottleneck: int = 256
    student_temp: float = 0.1
    teacher_temp_start: float = 0.04
    teacher_temp: float = 0.07
    teacher_temp_warmup: float = 0.3  # share of the run (30 of 100 epochs)
    centring: str = "mean"  # or "sinkhorn" (Sinkhorn-Knopp)
    centre_momentum: float = 0.9
    sinkhorn_iterations: int = 3
    momentum: float = 0.996  # of the teacher, rising to 1 by a cosine
    freeze_last_epochs: float = 1.0
    patch_weight: float = 1.0  # of the patches' loss beside that of whole images
    mask_probability: float = 0.5  # that a global crop is masked at all
    mask_share: tuple[float, float] = (0.1, 0.5)  # of its patches, then
    local_crops: int = 10
    global_scale: tuple[float, float] = (0.25, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "student_temp", "teacher_temp_start", "teacher_temp", "sinkhorn_iterations")
        one_of("method.centring", self.centring, ("mean", "sinkhorn"))
        within_one(self, "centre_momentum", "momentum", "mask_probability")
        range_within_one(self, "mask_share")
        if self.prototypes < 2:
            raise ValueError(f"method.prototypes={self.prototypes}: at least 2 are needed")


def needs(config: Config) -> Needs:
    """Plain patches to hide; other images where a batch is compared with itself."""
    if config.centring == "sinkhorn":
        return Needs(plain=True, batch=2, why_batch="Sinkhorn-Knopp compares the images of a batch")
    return Needs(plain=True)


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """Two global crops with unlike blur and solarisation, and the locals."""
    return plans.multi_crop(config, image_size)


def paper(image_size: int, model: str) -> Recipe:
    """ViT-S/16 and ViT-B/16 on ImageNet: batch 1024, 400 to 800 epochs.

    `omma pretrain IMAGES --method ibot --recipe paper --model vit-s/16 --epochs 800`
    """
    return Recipe(
        config=Config(), batch=1024, lr=5e-4 * 1024 / 256, warmup=10 / 800, weight_decay=0.04,
        weight_decay_end=0.4, clip=3.0, drop_path=0.1,
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: DINO's small recipe, and fewer hidden patches of less weight.

    `omma pretrain cifar10_25k.zip --method ibot --model vit-n/4 --budget 10m` on two cores. k-NN on 4,000
    held-out train images after 1,000 steps 41.2 %, SimCLR's 49.6. Young features of single patches are mostly
    noise.
    """
    config = Config(
        prototypes=2048, head_hidden=512, head_bottleneck=32, centring="sinkhorn", teacher_temp_start=0.02,
        teacher_temp=0.02, momentum=0.7, freeze_last_epochs=0.0, patch_weight=0.2, mask_probability=0.3,
        **plans.small_multi_crop(image_size, plain=True),
    )  # fmt: skip
    return Recipe(
        config=config, batch=128, lr=1e-3, warmup=0.1, weight_decay=0.04, weight_decay_end=0.2, clip=3.0,
        drop_path=0.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Student and teacher, each an encoder and a head for images and patches alike, and two centres."""

    centre: Tensor
    patch_centre: Tensor

    def __init__(self, encoder: Backbone, config: Config, given: Given) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = PrototypeHead(encoder.dim, config.prototypes, config.head_hidden, config.head_bottleneck)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.token_dim))
        self.teacher = ema.teacher_of(encoder)
        self.teacher_head = ema.teacher_of(self.head)
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("patch_centre", torch.zeros(config.prototypes))

    def kept(self) -> Backbone:
        return self.teacher

    def _masks(self, key: Key, grid: tuple[int, int]) -> Bool[Tensor, "vb n"]:
        c = self.config
        least = max(1, (min(grid) // 3) ** 2)  # as in the published code
        return view_masks(key, 2, grid, c.mask_probability, c.mask_share, least)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c = self.config
        first, second, *rest = batch.views
        b = len(first)
        globals_ = torch.cat([first[:, 0], second[:, 0]])
        grid = self.encoder.grid(*globals_.shape[-2:])
        mask = self._masks(batch.key, grid).to(globals_.device)
        at = mask.flatten().nonzero()[:, 0]

        crops = [hide(self.encoder, globals_, mask, self.mask_token)]
        for local in rest:
            x = local.transpose(0, 1).flatten(0, 1)
            crops.append((self.encoder.tokenize(x), self.encoder.grid(*x.shape[-2:])))
        seen = self.encoder.encode_many(crops)
        student = self.head.bottleneck(torch.cat([f.pooled for f in seen])).unflatten(0, (-1, b))
        student_patches = self.head.bottleneck(seen[0].patches.flatten(0, 1)[at])

        with torch.no_grad():
            whole = self.teacher(globals_)
            prototypes = self.teacher_head.prototypes()
            logits = (self.teacher_head.bottleneck(whole.pooled) @ prototypes.T).float()
            patches = self.teacher_head.bottleneck(whole.patches.flatten(0, 1))
            patch_logits = (patches[at] @ prototypes.T).float()
            # the mean over all patches' logits, hidden or not, without computing them
            patch_mean = (patches.float().mean(0) @ prototypes.float().T).float()
            progress = clock.progress / max(c.teacher_temp_warmup, 1e-9)
            temperature = linear(c.teacher_temp_start, c.teacher_temp, progress)
            if c.centring == "sinkhorn":
                teacher, patch_teacher = (
                    sinkhorn(x, temperature, c.sinkhorn_iterations, dist.total, dist.largest)
                    for x in (logits, patch_logits)
                )
            else:
                teacher = distillation.targets(logits, self.centre, temperature)
                patch_teacher = distillation.targets(patch_logits, self.patch_centre, temperature)
            teacher = teacher.unflatten(0, (2, b))

        prototypes = self.head.prototypes()
        image_loss = distillation.dino(student, prototypes, teacher, c.student_temp)
        counts = mask.sum(1, keepdim=True).expand_as(mask).flatten()[at].float()
        patch_loss = distillation.masked_patches(
            student_patches, prototypes, patch_teacher, counts, len(mask), c.student_temp
        )
        metrics = {
            "image_loss": image_loss.detach(),
            "patch_loss": patch_loss.detach(),
            "teacher_entropy": statistics.entropy(teacher).mean(),
            "teacher_kl_to_uniform": statistics.kl_to_uniform(teacher),
            "teacher_entropy_limit": teacher.new_tensor(float(c.prototypes)).log(),
        }
        loss = image_loss + c.patch_weight * patch_loss
        return StepOutput(loss, metrics, torch.stack([logits.mean(0), patch_mean]))

    @torch.no_grad()
    def after_step(self, clock: Clock, carries: Sequence[Tensor]) -> None:
        c = self.config
        momentum = cosine(c.momentum, 1.0, clock.progress)
        ema.update(self.teacher, self.encoder, momentum)
        ema.update(self.teacher_head, self.head, momentum)
        if c.centring != "mean":
            return
        images, patches = dist.mean(torch.stack(list(carries)).mean(0))
        self.centre.lerp_(images, 1 - c.centre_momentum)
        self.patch_centre.lerp_(patches, 1 - c.centre_momentum)

    def groups(self) -> Iterable[ParamGroup]:
        yield from groups.standard(self.encoder, "encoder")
        yield from groups.standard(self.head.mlp, "head")
        yield from groups.standard(self.head.last, "prototypes", frozen_until=self.config.freeze_last_epochs)
        yield ParamGroup(label="mask token", params=[self.mask_token], decay=False)
