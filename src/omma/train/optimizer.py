"""The optimizer over labelled parameter groups: made, scheduled, and frozen while a group asks for it."""

from collections.abc import Iterable

import torch

from omma.core.protocols import Clock, Method, ParamGroup, Recipe
from omma.train import fsdp, param_groups
from omma.train.lars import Lars
from omma.train.muon import Muon
from omma.train.schedules import cosine, learning_rate


def make_optimizer(
    method: Method,
    recipe: Recipe,
    groups: Iterable[ParamGroup] | None = None,
    dtype: torch.dtype | None = None,
) -> torch.optim.Optimizer:
    """The recipe's optimizer over `groups`, by default the method's own.

    dtype: of the products that Muon's iterations make; by default the parameters'.
    """
    own = method.groups() if groups is None else groups
    labelled = [
        {
            "params": list(group.params),
            "label": group.label,
            "lr_scale": group.lr_scale,
            "decay": group.decay,
            "frozen_until": group.frozen_until,
            "frozen_share": group.frozen_share,
            "ages": group.ages,
            "part": group.part,
        }
        for group in param_groups.with_decay(own, method, recipe.decayed)
    ]
    chosen = fsdp.split(labelled)
    if recipe.optimizer == "lars":
        return Lars(chosen, lr=recipe.lr, momentum=recipe.betas[0], momentum_of=recipe.momentum_of)
    if recipe.optimizer == "muon":
        return Muon(
            chosen, lr=recipe.lr, matrix_lr=recipe.matrix_lr, momentum=recipe.momentum, betas=recipe.betas,
            eps=recipe.eps, dtype=dtype,
        )  # fmt: skip
    fused = all(p.device.type in ("cpu", "cuda") for group in chosen for p in group["params"])
    return torch.optim.AdamW(
        chosen, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=0.0, fused=fused
    )


def schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, clock: Clock) -> float:
    """Set every group's learning rate and decay for this step; returns the unscaled learning rate."""
    lr = learning_rate(clock, recipe)
    end = recipe.weight_decay if recipe.weight_decay_end is None else recipe.weight_decay_end
    decay = cosine(recipe.weight_decay, end, clock.progress)
    for group in optimizer.param_groups:
        still = group.get("ages", False) and clock.epoch < group["frozen_until"]
        group["lr"] = 0.0 if still else lr * group["lr_scale"]
        group["weight_decay"] = decay if group["decay"] else 0.0
    return lr


def freeze(optimizer: torch.optim.Optimizer, clock: Clock) -> None:
    """Take the gradient from groups that are frozen at this step and give it to all others.

    A frozen group saves its backward pass; without gradients its parameters are neither moved nor decayed,
    and their moments do not age. A group that ages keeps its gradient, and `schedule` sets its rate to 0.
    """
    for group in optimizer.param_groups:  # checkpoints of omma 0.1 lack `frozen_share` and `ages`
        until = clock.epoch < group["frozen_until"] and not group.get("ages", False)
        frozen = until or clock.progress < group.get("frozen_share", 0.0)
        for p in group["params"]:
            p.requires_grad_(not frozen)
