"""Shared by DINO, iBOT and DINOv2: options, the teacher's distributions, and statistics of collapse."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from omma.backbones.layers.heads import PrototypeHead
from omma.core import collectives
from omma.core.checks import above_zero, at_least_zero, one_of, within_one
from omma.core.protocols import Clock, Needs, Recipe
from omma.core.recipe import added
from omma.losses import distillation
from omma.methods.shared import crops, sinkhorn
from omma.methods.shared.small_data import MUON
from omma.ops import statistics
from omma.train.schedules import linear


@dataclass(frozen=True, kw_only=True)
class SelfDistillation(crops.MultiCrop):
    """Options of a method whose student learns a teacher's prototype assignments; the defaults are DINO's."""

    centrings: ClassVar[tuple[str, ...]] = ("mean", "sinkhorn")

    prototypes: int = 65_536
    head_hidden: int = 2048
    head_bottleneck: int = 256
    # prototypes have a learned length, which decays; else length 1
    prototype_gain: bool = added(False, before=False)
    student_temp: float = 0.1
    teacher_temp_start: float = 0.04
    teacher_temp: float = 0.07
    teacher_temp_warmup: float = 30.0  # epochs; in a run that is shorter, 3 tenths of it; below 1: that share
    teacher_temp_by: Literal["epoch", "step"] = added("epoch", before="step")  # when it changes
    centring: str = "mean"  # or "sinkhorn" (Sinkhorn-Knopp)
    centre_momentum: float = 0.9
    sinkhorn_iterations: int = 3
    momentum: float = 0.996  # of the teacher, rising to 1 by a cosine
    freeze_last_epochs: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "head_hidden", "head_bottleneck", "sinkhorn_iterations")
        above_zero(self, "student_temp", "teacher_temp_start", "teacher_temp")
        within_one(self, "centre_momentum", "momentum")
        at_least_zero(self, "teacher_temp_warmup")
        one_of("method.teacher_temp_by", self.teacher_temp_by, ("epoch", "step"))
        one_of("method.centring", self.centring, self.centrings)
        if self.prototypes < 2:
            raise ValueError(f"method.prototypes={self.prototypes}: at least 2 are needed")


def needs(config: SelfDistillation, plain: bool = False, koleo: bool = False) -> Needs:
    """At least 2 images if a term of the loss compares the images of a batch."""
    terms = {"KoLeo": koleo, "Sinkhorn-Knopp": config.centring == "sinkhorn"}
    compares = [name for name, used in terms.items() if used]
    why = f"{' and '.join(compares)} compare{'s' * (len(compares) == 1)} the images of a batch"
    return Needs(plain=plain, batch=2 if compares else 1, why_batch=why)


def small(image_size: int, plain: bool) -> dict[str, Any]:
    """Options for 1,000 to 100,000 images on one machine: few dimensions and sharp, balanced targets.

    In a short run the teacher must follow quickly, and a mean over the last ten batches is too old a centre
    (docs/benchmarks.md). plain: see `crops.small_multi_crop`.
    """
    return dict(
        prototypes=2048, head_hidden=512, head_bottleneck=32, centring="sinkhorn", teacher_temp_start=0.02,
        teacher_temp=0.02, teacher_temp_by="step", momentum=0.7, freeze_last_epochs=0.0,
        **crops.small_multi_crop(image_size, plain),
    )  # fmt: skip


def small_recipe(config: SelfDistillation) -> Recipe:
    """The optimizer's settings for `small`."""
    return Recipe(
        config=config, batch=128, lr=1e-3, warmup=0.1, weight_decay=0.04, weight_decay_end=0.2, clip=3.0,
        drop_path=0.0, encoder={"pool": "mean"}, **MUON,
    )  # fmt: skip


def teacher_temperature(config: SelfDistillation, clock: Clock) -> float:
    """tau_t, which rises linearly: the last epoch (step) of the warm-up has the final value."""
    if config.teacher_temp_warmup < 1:
        return linear(
            config.teacher_temp_start, config.teacher_temp,
            clock.progress / max(config.teacher_temp_warmup, 1e-9),
        )  # fmt: skip
    if clock.epochs < 1.25 * config.teacher_temp_warmup:
        done, warmup = clock.step, clock.steps(clock.warmup(config.teacher_temp_warmup, 0.3))
    elif config.teacher_temp_by == "step":
        done, warmup = clock.step, clock.steps(config.teacher_temp_warmup)
    else:
        done, warmup = math.floor(clock.epoch), config.teacher_temp_warmup
    progress = done / (warmup - 1) if warmup > 1 else float(done >= warmup)
    return linear(config.teacher_temp_start, config.teacher_temp, progress)


def _sinkhorn(
    config: SelfDistillation,
    logits: Float[Tensor, "n k"],
    temperature: float,
    scale: Float[Tensor, "k"] | float = 1.0,
) -> Float[Tensor, "k"]:
    """The centre that balances assignments over the batch of all processes; `scale` multiplies the logits."""
    return sinkhorn.centre(
        logits, temperature, config.sinkhorn_iterations, collectives.total, collectives.largest, scale,
        dtype=torch.promote_types(logits.dtype, torch.float32),
    )  # fmt: skip


def head(config: SelfDistillation, dim: int, bottleneck: int | None = None) -> PrototypeHead:
    """A head for features of `dim` dimensions; bottleneck: instead of `head_bottleneck`."""
    width = config.head_bottleneck if bottleneck is None else bottleneck
    return PrototypeHead(dim, config.prototypes, config.head_hidden, width, config.prototype_gain)


@torch.no_grad()
def probabilities(
    config: SelfDistillation, logits: Float[Tensor, "n k"], centre: Float[Tensor, "k"], clock: Clock
) -> Float[Tensor, "n k"]:
    """The teacher's t = softmax((g - C) / tau_t); C balances the batch, or is the moving mean `centre`."""
    temperature = teacher_temperature(config, clock)
    if config.centring == "sinkhorn":
        centre = _sinkhorn(config, logits, temperature)
    return distillation.probabilities(
        logits, centre, temperature, torch.promote_types(logits.dtype, torch.float32)
    )


@torch.no_grad()
def lazy_probabilities(
    config: SelfDistillation,
    head: PrototypeHead,
    bottleneck: Float[Tensor, "m e"],
    centre: Float[Tensor, "k"],
    clock: Clock,
) -> distillation.LazyProbabilities:
    """`probabilities` of head.cosines(bottleneck), a few rows at a time.

    Sinkhorn-Knopp needs all logits first, which are stored in the network's precision to compute C.
    """
    prototypes, scales = head.last.weight, head.scales()
    temperature = teacher_temperature(config, clock)
    if config.centring == "sinkhorn":
        centre = _sinkhorn(config, F.linear(bottleneck, prototypes), temperature, scales)
    return distillation.LazyProbabilities(bottleneck, prototypes, scales, centre, temperature)


@torch.no_grad()
def collapse_stats(teacher: Float[Tensor, "*b k"]) -> dict[str, Tensor]:
    """Statistics that show a collapse of the teacher's assignments (see `signals`), in nats."""
    use = collectives.mean(teacher.flatten(0, -2).mean(0))
    return {
        "teacher_entropy": statistics.entropy(teacher).mean(),
        "teacher_kl_to_uniform": statistics.kl_to_uniform(use),
        "teacher_entropy_limit": teacher.new_tensor(float(teacher.shape[-1])).log(),
    }
