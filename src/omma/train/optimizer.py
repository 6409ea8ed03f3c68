"""AdamW over labelled parameter groups: made, scheduled, and frozen while a group asks for it."""

from collections.abc import Iterable

import torch

from omma.core.protocols import Clock, Method, ParamGroup, Recipe
from omma.train import fsdp
from omma.train.schedules import cosine, warmup_cosine


def make_optimizer(
    method: Method, recipe: Recipe, groups: Iterable[ParamGroup] | None = None
) -> torch.optim.AdamW:
    """AdamW over `groups`, by default the method's own."""
    labelled = [
        {
            "params": list(group.params),
            "label": group.label,
            "lr_scale": group.lr_scale,
            "decay": group.decay,
            "frozen_until": group.frozen_until,
            "frozen_share": group.frozen_share,
        }
        for group in (method.groups() if groups is None else groups)
    ]
    param_groups = fsdp.split(labelled)
    fused = all(p.device.type in ("cpu", "cuda") for group in param_groups for p in group["params"])
    return torch.optim.AdamW(param_groups, lr=recipe.lr, betas=recipe.betas, weight_decay=0.0, fused=fused)


def schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, clock: Clock) -> float:
    """Set every group's learning rate and decay for this step; returns the unscaled learning rate."""
    lr = warmup_cosine(clock, recipe.lr, recipe.lr_end, recipe.warmup)
    end = recipe.weight_decay if recipe.weight_decay_end is None else recipe.weight_decay_end
    decay = cosine(recipe.weight_decay, end, clock.progress)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = decay if group["decay"] else 0.0
    return lr


def freeze(optimizer: torch.optim.Optimizer, clock: Clock) -> None:
    """Take the gradient from groups that are frozen at this step and give it to all others.

    A frozen group saves its backward pass; without gradients its parameters are neither moved nor decayed,
    and their moments do not age.
    """
    for group in optimizer.param_groups:
        share = group.get("frozen_share", 0.0)  # checkpoints of omma 0.1 have no such key
        frozen = clock.epoch < group["frozen_until"] or clock.progress < share
        for p in group["params"]:
            p.requires_grad_(not frozen)
