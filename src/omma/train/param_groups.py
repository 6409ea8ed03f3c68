"""Groups of a network's parameters, with and without weight decay."""

import itertools
from collections.abc import Collection, Iterable
from dataclasses import replace

from torch import nn

from omma.core.protocols import Backbone, ParamGroup
from omma.core.recipe import Kind


def decays(p: nn.Parameter) -> bool:
    """True for weight matrices and kernels; False for norms, biases, positions and tokens ([1, n, d])."""
    return p.ndim > 1 and not (p.ndim == 3 and p.shape[0] == 1)


def kind(name: str, p: nn.Parameter, tables: Collection[int] = ()) -> Kind | None:
    """What the parameter of this name is, None for matrices and kernels.

    tables: ids of tables of relative positions.
    """
    if id(p) in tables:
        return "table"
    last = name.rpartition(".")[2]
    if last.startswith(("pos_embed", "positional_embedding")):
        return "position"
    if p.ndim <= 1:
        return "vector"
    return None if decays(p) else "token"


def _decays(name: str, p: nn.Parameter, tables: Collection[int], decayed: Collection[str]) -> bool:
    return kind(name, p, tables) in decayed or name.rpartition(".")[2] in decayed


def with_decay(groups: Iterable[ParamGroup], method: nn.Module, decayed: Collection[str]) -> list[ParamGroup]:
    """Divide groups without weight decay by whether their parameters' kinds or names are `decayed`."""
    names = {id(p): name for name, p in method.named_parameters()}
    tables = {id(getattr(m, name)) for m in method.modules() for name in getattr(m, "undecayed", ())}
    divided = []
    for group in groups:
        if group.decay:
            divided.append(group)
            continue
        chosen = [p for p in group.params if _decays(names.get(id(p), ""), p, tables, decayed)]
        ids = {id(p) for p in chosen}
        rest = [p for p in group.params if id(p) not in ids]
        if chosen:
            label = f"{group.label.removesuffix(', no decay')}, more decay"
            divided.append(replace(group, label=label, params=chosen, decay=True))
        if rest:
            divided.append(replace(group, params=rest))
    return divided


def standard(
    module: nn.Module,
    label: str,
    *,
    lr_scale: float = 1.0,
    frozen_until: float = 0.0,
    ages: bool = False,
    part: str = "",
) -> list[ParamGroup]:
    """The module's trainable parameters in two groups: with and without weight decay.

    Parameters that a module names in `undecayed` (a table of relative positions) do not decay.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    undecayed = {id(getattr(m, name)) for m in module.modules() for name in getattr(m, "undecayed", ())}
    groups = []
    for decay in (True, False):
        if params := [p for p in trained if (decays(p) and id(p) not in undecayed) == decay]:
            group = ParamGroup(
                label=label if decay else f"{label}, no decay", params=params, lr_scale=lr_scale, decay=decay,
                frozen_until=frozen_until, ages=ages, part=part,
            )  # fmt: skip
            groups.append(group)
    return groups


def layerwise(
    encoder: Backbone, label: str, decay: float, embedding: float = 1.0, part: str = ""
) -> list[ParamGroup]:
    """The encoder's parameters with layer-wise learning rates: scale decay^i for the i-th layer from the end.

    [Bao 2021, appendix]. i = 0 is after the last block; patch embedding, tokens and positions have
    i = blocks + 1, and the patch embedding's kernel is scaled by `embedding` too [Oquab 2023, appendix].
    Raises ValueError for a network whose layers are not known.
    """
    if decay == 1 and embedding == 1:
        return standard(encoder, label, part=part)
    layers = encoder.by_depth()
    if len(layers) < 2:
        raise ValueError(f"the layers of {encoder.name} are not known: give --method.layer-decay 1")
    decayed = {id(p): group.decay for group in standard(encoder, label) for p in group.params}
    stems = {name.rpartition(".")[0] for name in encoder.first_layers}
    kernels = {id(p) for name, p in encoder.named_parameters() if name.rpartition(".")[0] in stems}
    groups = []
    for number, layer in enumerate(layers):
        rate = decay ** (len(layers) - 1 - number)
        for decays_, kernel in itertools.product((True, False), repeat=2):
            params = [p for p in layer if decayed.get(id(p)) == decays_ and (id(p) in kernels) == kernel]
            if params:
                name = f"{label}, layer {number}" + ", kernel" * kernel + ", no decay" * (not decays_)
                scale = rate * (embedding if kernel else 1.0)
                groups.append(ParamGroup(label=name, params=params, lr_scale=scale, decay=decays_, part=part))
    return groups
