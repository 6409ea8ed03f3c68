"""Interaction: features that tell what touching a thing does [Pinto 2016, arXiv 1604.01360].

Of a push, the pictures before and after tell where it began and ended; of a grasp, one picture tells at which
of 18 angles it succeeds; of a poke, how force grows with depth; and two pictures of an object should be
alike. One encoder reads all pictures, each task has a head, and a row of the table teaches those tasks whose
columns it has (the Curious Robot).

    L = sum_t 1/n_t sum_(i has t) L_t(head_t(f(x_i)), y_it),  push, poke: mean ((y^ - y) / deviation)^2;
    grasp: cross-entropy of success at the angle tried; identity: 1 - cos(z, z') + max(0, cos(z, z_other) - m)

Costs: two pictures a sample through one encoder where there are pushes or objects, else one.
Choose it for logs of a robot, or any actions whose numbers stand beside pictures of before and after.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch

from omma import backbones
from omma.core import protocols
from omma.core.checks import above_zero, at_least_zero
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
    Field,
    Frames,
    Needs,
    ParamGroup,
    Recipe,
    StepOutput,
)
from omma.methods.shared import tracks
from omma.methods.shared.task_heads import Heads, check, known
from omma.train import param_groups

TASKS = ("push", "grasp", "poke", "identity")
PAIRS = ("push", "identity")  # tasks that compare two pictures ...
FRAMES = Frames(count=2, least=1.0, most=1.0, alone=True)  # ... one and the next of its sequence


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's tasks; columns of each, by commas. A table may lack the default ones; none: left out."""

    push: str = "push_x0,push_y0,push_x1,push_y1"  # begin and end, in any unit
    grasp: str = "grasp_angle,grasp_success"  # degrees, modulo 180; 1 or 0
    poke: str = "poke_slope,poke_intercept"  # of the line of force over depth
    identity: str = "object"  # the object's name
    angles: int = 18  # of a grasp, in 180 degrees
    hidden: int = 4096  # of each head
    cells: int = 16  # numbers that a head reads of each patch, so that it knows where things lie
    margin: float = 0.0  # of cosines to other objects
    crop_size: int | None = None  # pixels of the views, which are whole images; None: the image size

    def __post_init__(self) -> None:
        above_zero(self, "angles", "hidden", "cells")
        at_least_zero(self, "margin")
        if not asked(self):
            raise ValueError(f"method.{', '.join(TASKS)}: give the columns of one of them")


def asked(config: Config) -> list[str]:
    """The tasks whose columns are named."""
    return [task for task in TASKS if getattr(config, task) not in ("", "none")]


def needs(config: Config) -> Needs:
    """Columns of at least one task; the default ones may lack, and any value may be missing."""
    defaults = {f.name: f.default for f in fields(config)}

    def field(task: str) -> Field:
        columns, kind = getattr(config, task), "names" if task == "identity" else "numbers"
        optional, names = columns == defaults[task], tuple(name.strip() for name in columns.split(","))
        return Field(name=task, columns=names, missing="nan", optional=optional, kind=kind)

    return Needs(fields=tuple(map(field, asked(config))), numbered=True, fixed_views=True)


def frames(config: Config) -> Frames | None:
    """Two pictures, of one crop, where a task compares them."""
    return FRAMES if set(PAIRS) & set(asked(config)) else None


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """The whole image, not mirrored: what the numbers mean depends on both."""
    size = config.crop_size or image_size
    return (Crop(size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_p=0.0),)


def paper(image_size: int, model: str) -> Recipe:
    """Batches of all tasks in place of the paper's turns; AdamW in place of RMSprop.

    `omma pretrain IMAGES --method interaction --recipe paper --model timm:resnet18 --epochs 100`
    """
    return Recipe(config=Config(), batch=128, lr=1e-3, warmup=0.05, weight_decay=0.05, clip=3.0)


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 actions on one machine: narrower heads, small batches.

    `omma pretrain pushes.csv --method interaction`
    """
    return Recipe(
        config=Config(hidden=256), batch=32, lr=1e-3 if backbones.family(model).plain else 2e-3, lr_end=2e-5,
        warmup=0.05, weight_decay=0.05, clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder, and a head for each task that the table has columns of."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        has = {} if context.tracks is None else context.tracks.fields
        tasks = {task: has[task] for task in asked(config) if task in has and known(task, has[task]).any()}
        if not tasks:
            columns = "; ".join(f"{task}: {getattr(config, task)}" for task in asked(config))
            raise ValueError(
                f"interaction: the table has the columns of no task ({columns}): fill or name them"
            )
        self.config, self.encoder = config, encoder
        rows, columns = encoder.grid(*[config.crop_size or context.image_size] * 2)
        self.heads = Heads(encoder.dim, rows * columns, config.cells, config.hidden, config.angles, tasks)
        if any(task in PAIRS for task in tasks):
            draw = tracks.sampler("interaction", context, FRAMES)
            self.paired = draw.usable()
            check({task: values[draw.leading()] for task, values in tasks.items() if task in PAIRS})
        check(tasks)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        (x,) = batch.views
        predicted, metrics, losses = self.heads(self.encoder(x.flatten(0, 1)), x.shape[1]), {}, []
        for task, y in predicted.items():
            target = batch.fields[task].to(y.device).view(*x.shape[:2], -1)
            has = target[..., 0] >= 0 if task == "identity" else target.isfinite().all(-1)
            if task in PAIRS:  # its numbers are those of the first frame
                paired = torch.from_numpy(self.paired[batch.key.index]).to(y.device)
                target, has = target[:, :1], has[:, :1] & paired[:, None]
            target, has = target.flatten(0, 1), has.flatten()
            loss, metrics[f"{task}_error"] = self.heads.loss(task, y, target, has, self.config.margin)
            losses.append(loss)
        return StepOutput(torch.stack(losses).sum(), metrics)

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.heads, "heads")
