"""Going on from weights that are there: new heads first, then the encoder, more slowly."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from omma.core.protocols import Method, ParamGroup


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run's first weights came from, and how carefully they are treated.

    head_warmup: share of the run in which the encoder is frozen: gradients of untrained heads are noise that
    would undo what it knows. A tenth, as long as DINO's own warm-up of the learning rate [Caron 2021,
    section 3.2]; it grows with the run as all schedules do.
    encoder_lr_scale: the encoder's learning rate, as a share of the heads'.
    """

    source: str  # as the user named it
    digest: str  # of the weights that were found there
    spec: Mapping[str, Any]  # of the network that they were made for
    patch: int  # its own, in pixels
    preprocess: Mapping[str, Any]  # its own
    head_warmup: float = 0.1
    encoder_lr_scale: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.head_warmup < 1:
            raise ValueError(f"head_warmup={self.head_warmup}: must be a share of the run in [0, 1)")
        if not self.encoder_lr_scale > 0:
            raise ValueError(f"encoder_lr_scale={self.encoder_lr_scale}: must be above 0 (.1 to 1)")


def groups(method: Method, head_warmup: float, encoder_lr_scale: float) -> list[ParamGroup]:
    """The method's groups with those of its encoder frozen at first and slower afterwards.

    A group that holds the encoder's parameters and others becomes two. Nothing is frozen in a method without
    heads, which would have nothing to train meanwhile.
    """
    inside = {id(p) for p in method.encoder.parameters()}
    theirs, heads = [], []
    for group in method.groups():
        own = [p for p in group.params if id(p) in inside]
        rest = [p for p in group.params if id(p) not in inside]
        if own:
            theirs.append(replace(group, params=own, lr_scale=group.lr_scale * encoder_lr_scale))
        if rest:
            heads.append(replace(group, params=rest))
    if heads:
        theirs = [replace(g, frozen_share=max(g.frozen_share, head_warmup)) for g in theirs]
    return theirs + heads


def share_frozen(labelled: Iterable[Mapping[str, Any]]) -> float:
    """Share of the run until which some of an optimizer's groups are frozen."""
    return max((group.get("frozen_share", 0.0) for group in labelled), default=0.0)
