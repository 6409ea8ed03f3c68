"""Continued pretraining from given weights: new heads train first, then the encoder, more slowly."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from omma.core.protocols import Method, ParamGroup


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run's initial weights came from, and how gently they are trained.

    head_warmup: share of the run in which the encoder is frozen, because gradients of untrained heads are
    noise that would damage it. A tenth, as long as DINO's warm-up of the learning rate [Caron 2021, section
    3.2]; it scales with the length of the run like all schedules.
    encoder_lr_scale: the encoder's learning rate, as a share of the heads'.
    """

    source: str  # as the user named it
    digest: str  # of those weights
    spec: Mapping[str, Any]  # of the network they were trained in
    patch: int  # of that network, in pixels
    preprocess: Mapping[str, Any]  # of that network
    head_warmup: float = 0.1
    encoder_lr_scale: float = 0.1
    pretrained_by: str | None = None  # the method, where a recipe depends on it

    def __post_init__(self) -> None:
        if not 0 <= self.head_warmup < 1:
            raise ValueError(f"head_warmup={self.head_warmup}: must be a share of the run in [0, 1)")
        if not self.encoder_lr_scale > 0:
            raise ValueError(f"encoder_lr_scale={self.encoder_lr_scale}: must be above 0 (.1 to 1)")


def groups(method: Method, head_warmup: float, encoder_lr_scale: float) -> list[ParamGroup]:
    """The method's groups, with its encoder's frozen at first and slower afterwards.

    A group that mixes the encoder's parameters with others becomes two. In a method without heads nothing is
    frozen: nothing would be left to train.
    """
    encoder = {id(p) for p in method.encoder.parameters()}
    encoders, heads = [], []
    for group in method.groups():
        own = [p for p in group.params if id(p) in encoder]
        rest = [p for p in group.params if id(p) not in encoder]
        if own:
            encoders.append(replace(group, params=own, lr_scale=group.lr_scale * encoder_lr_scale))
        if rest:
            heads.append(replace(group, params=rest))
    if heads:
        encoders = [replace(g, frozen_share=max(g.frozen_share, head_warmup)) for g in encoders]
    return encoders + heads


def share_frozen(labelled: Iterable[Mapping[str, Any]]) -> float:
    """Share of the run after which none of an optimizer's groups is frozen any more."""
    return max((group.get("frozen_share", 0.0) for group in labelled), default=0.0)
