"""omma's contenders: each method in the setting of a race, in omma's training loop."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import Contender, contender_name
from setting import DISTILLED, Setting

from omma import backbones, methods
from omma.core.protocols import Batch, Context, Key, Method, Recipe
from omma.train.loop import Position, Step, train
from omma.train.optimizer import make_optimizer
from omma.train.profile import OFF, Stopwatch

STEPS = 1_000_000  # of a run that never ends


def config(s: Setting) -> dict[str, Any]:
    """The method's options: those of the setting, else the paper's."""
    if s.method in DISTILLED:
        heads = {"prototypes": s.prototypes_, "head_hidden": s.hidden, "head_bottleneck": s.bottleneck}
        options = {**heads, "local_crops": s.local_crops, "centring": "mean", "freeze_last_epochs": 0.0}
        return {**options, "untied": s.untied} if s.method == "dinov2" else options
    if s.method == "mae":
        depth, dim, heads = s.decoder_
        return {"decoder_depth": depth, "decoder_dim": dim, "decoder_heads": heads}
    if s.method == "supervised":
        return {"mixup": 0.0, "cutmix": 0.0, "operations": 0, "erase_p": 0.0, "repeats": 1}
    options = {"temperature": s.temperature, "hidden": s.projector, "out": s.out}
    if s.method == "moco":  # as v2 has it
        options |= {"layers": 2, "predictor": False, "momentum": 0.99, "momentum_end": 0.99}
        options |= {"queue": s.queue, "freeze_patch_embed": False}
    return options


def method_of(s: Setting) -> tuple[Method, Recipe]:
    """The method and its recipe."""
    file = methods.get(s.method)
    recipe = replace(
        file.small(s.image_size, s.model), config=file.Config(**config(s)), batch=s.batch, lr=s.lr
    )
    encoder: dict[str, Any] = {"positions": "sincos"} if s.method == "mae" else {}
    if s.method in ("ibot", "dinov2"):
        encoder = {"layer_scale": s.layer_scale, "drop_path": s.drop_path, "drop_uniform": True}
    torch.manual_seed(0)
    built = backbones.build(name=s.model, image_size=s.image_size, channels=3, **encoder)
    given = Context(image_size=s.image_size, images=50_000, classes=tuple(map(str, range(s.classes))))
    return file.Method(built, recipe.config, given).to(s.device), recipe


def batch_of(s: Setting) -> Batch:
    """The crops as the method expects them: each kind [b, views, c, s, s]."""
    crops = s.crops()
    key = Key(0, np.zeros(s.batch, np.int64), np.arange(s.batch))
    if s.method in DISTILLED:
        views = [crops[0][:, None], crops[1][:, None]]
        views += [torch.stack(crops[2:], dim=1)] if len(crops) > 2 else []
    elif s.method == "simclr":
        views = [torch.stack(crops, dim=1)]
    else:
        views = [crop[:, None] for crop in crops]
    return Batch(tuple(views), key, s.labels() if s.method == "supervised" else None)


def steps(
    s: Setting, bf16: bool, watch: Callable[[Method], Stopwatch] = lambda method: OFF
) -> Iterator[Step]:
    """Steps as in a run, with schedules, clipping, metrics and the check for finite numbers."""
    method, recipe = method_of(s)
    return train(
        method,
        make_optimizer(method, recipe),
        itertools.repeat(batch_of(s)),
        recipe,
        Position(0, STEPS, s.batch, 50_000),
        dtype=torch.bfloat16 if bf16 else torch.float32,
        watch=watch(method),
    )


def contender(s: Setting, bf16: bool) -> Contender:
    """A contender whose call makes one step."""
    loop = steps(s, bf16)
    return Contender(contender_name("omma", bf16), lambda: next(loop), s.batch, ours=True, bf16=bf16)
