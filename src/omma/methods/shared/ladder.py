"""Rows of DINOv2's table 1, from iBOT to DINOv2, as changes of a recipe [Oquab 2023, arXiv 2304.07193]."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from omma.core.protocols import Recipe


class Switch(NamedTuple):
    """One row of table 1: its change, and the paper's top-1 on ImageNet by k-NN and linear probe (ViT-L).

    change: from (the previous row's recipe, the last row's recipe) to this row's.
    """

    name: str
    change: Callable[[Recipe, Recipe], Recipe]
    knn: float
    linear: float


def configured(recipe: Recipe, **options: Any) -> Recipe:
    return dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, **options))


def _method(*names: str) -> Callable[[Recipe, Recipe], Recipe]:
    """Set these options of the method to the values of the last row."""
    return lambda r, end: configured(r, **{name: getattr(end.config, name) for name in names})


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
    start = configured(
        end, prototypes=max(2, c.prototypes // 16), untied=False, centring="mean", koleo=0.0, layer_decay=1.0,
        patch_embed_lr=1.0, momentum=_momentum_at(c.momentum, 2 / 3),
        teacher_temp_warmup=c.teacher_temp_warmup / 2, patch_head_bottleneck=None,
        head_bottleneck=c.patch_head_bottleneck or c.head_bottleneck,
    )  # fmt: skip
    deep = ("layer_scale", "drop_uniform", "drop_exact", "mlp", "hidden")
    encoder = {k: v for k, v in end.encoder.items() if k not in deep}
    return dataclasses.replace(
        start, encoder=encoder, drop_path=0.0, batch=max(2, end.batch // 3), lr=end.lr / 2 / 3**0.5,
        warmup=end.warmup / 2, warmup_epochs=None if end.warmup_epochs is None else end.warmup_epochs / 2,
        weight_decay_end=0.4,
    )  # fmt: skip


def _reproduced(r: Recipe, end: Recipe) -> Recipe:
    """The settings of the authors' code: a higher rate, a faster teacher (.992), a slow patch embedding."""
    r = _method("layer_decay", "patch_embed_lr")(r, end)
    r = configured(r, momentum=_momentum_at(end.config.momentum, 4 / 3))
    return dataclasses.replace(r, lr=r.lr * 2, weight_decay_end=end.weight_decay_end)


def _deep(r: Recipe, end: Recipe) -> Recipe:
    scaled = _encoder(layer_scale=1e-5, drop_uniform=True, drop_exact=True)(r, end)
    return dataclasses.replace(scaled, drop_path=end.drop_path or 0.3)


def _warmed(r: Recipe, end: Recipe) -> Recipe:
    warmed = _method("teacher_temp_warmup")(r, end)
    return dataclasses.replace(warmed, warmup=end.warmup, warmup_epochs=end.warmup_epochs)


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
    Switch("untied heads", _method("untied", "head_bottleneck", "patch_head_bottleneck"), 82.0, 84.5),
)
