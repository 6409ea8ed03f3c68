"""Adapters: few parameters that are trained while the network they are inserted into stays as it is.

One file a kind; a kind's name is its file's name. A file offers a frozen dataclass `Config`, whose fields are
the options --adapt.KEY, and `insert(network, config)`, which adds the adapter's modules to the network, whose
parameters are all frozen by then, and gives gradients to what it trains. A module that should follow the
network's training mode (dropout) has the attribute `of_adapter = True`. If the adapter can be folded into the
network's own weights, the file also offers `merge(network)`. One that changes the network and trains all of
it says `FREEZES = False`.

All of an adapter's effect is in the encoder's features, so a classifier is an encoder and a linear layer on
`Features.pooled`, whatever adapts it.
"""

import copy
import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from omma.core.backbone import Backbone
from omma.core.checks import one_of

OPTION = "adapt"  # of `backbones.build`, and the key in `Backbone.built_from`


def kinds() -> list[str]:
    """The kinds of adapters."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def config(kind: str, options: Mapping[str, Any] | None = None) -> Any:
    """The options of one kind of adapter, with its defaults.

    Raises ValueError for an unknown kind or option, and for a value out of range.
    """
    one_of("adapt", kind, tuple(kinds()))
    config_class: Any = _file(kind).Config
    known = {field.name for field in dataclasses.fields(config_class)}
    if unknown := sorted((options or {}).keys() - known):
        has = ", ".join(sorted(known)) or "none"
        raise ValueError(f"--adapt.{unknown[0]}: {kind} has no such option; it has {has}")
    return config_class(**(options or {}))


def insert(network: Backbone, kind: str, options: Mapping[str, Any] | None = None) -> None:
    """Insert an adapter into the network, in place; all else is frozen, unless its kind says otherwise.

    The frozen part stays in evaluation mode. `network.spec()` describes the adapter, so `backbones.build`
    rebuilds it. Raises ValueError for a network that has one already, or that this kind does not fit.
    """
    if network.adapter is not None:
        raise ValueError(
            f"{network.name} has an adapter already ({network.adapter}): it learns on with --adapt full"
        )
    chosen = config(kind, options)
    if freezes(kind):
        network.requires_grad_(False)
    _file(kind).insert(network, chosen)
    network.adapter, network.frozen = kind, freezes(kind)
    network.built_from = {**network.built_from, OPTION: {"kind": kind, **dataclasses.asdict(chosen)}}
    network.train(network.training)


def freezes(kind: str) -> bool:
    """Does this kind train its own parameters only?"""
    return getattr(_file(kind), "FREEZES", True)


def merged(network: Backbone) -> Backbone:
    """A copy without adapter that computes the same, where the adapter can be folded into the weights.

    Adapters that cannot be folded in stay; their spec rebuilds them. A network without adapter is copied.
    """
    merged = copy.deepcopy(network)
    file = None if network.adapter is None else _file(network.adapter)
    if file is not None and hasattr(file, "merge"):
        file.merge(merged)
        merged.adapter, merged.frozen = None, False
        merged.built_from = {k: v for k, v in network.built_from.items() if k != OPTION}
    return merged


def _file(kind: str) -> Any:
    return importlib.import_module(f"{__name__}.{kind}")
