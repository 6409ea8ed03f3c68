"""Which parameters decay: labelled groups of a network's parameters."""

from torch import nn

from omma.core.protocols import Backbone, ParamGroup


def decays(p: nn.Parameter) -> bool:
    """Weight matrices and kernels decay; norms, biases, positions and tokens ([1, n, d]) do not."""
    return p.ndim > 1 and not (p.ndim == 3 and p.shape[0] == 1)


def standard(
    module: nn.Module, label: str, *, lr_scale: float = 1.0, frozen_until: float = 0.0
) -> list[ParamGroup]:
    """The module's trainable parameters in two groups: with and without weight decay.

    A module spares those of its own parameters that it names in `undecayed` (a table of relative positions).
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    spared = {id(getattr(m, name)) for m in module.modules() for name in getattr(m, "undecayed", ())}
    groups = []
    for decay in (True, False):
        params = [p for p in trained if (decays(p) and id(p) not in spared) == decay]
        if params:
            groups.append(
                ParamGroup(
                    label=label if decay else f"{label}, no decay",
                    params=params,
                    lr_scale=lr_scale,
                    decay=decay,
                    frozen_until=frozen_until,
                )
            )
    return groups


def layerwise(encoder: Backbone, label: str, decay: float, embedding: float = 1.0) -> list[ParamGroup]:
    """The encoder's parameters with the learning rate times `decay` for each layer further from the end.

    [Bao 2021, appendix]; what stands after the last block has 1, the first layer (patch embedding, tokens,
    positions) decay^(blocks + 1), its kernel that times `embedding` [Oquab 2023, appendix]. Raises ValueError
    for a network whose layers are not known.
    """
    if decay == 1 and embedding == 1:
        return standard(encoder, label)
    layers = encoder.by_depth()
    if len(layers) < 2:
        raise ValueError(f"the layers of {encoder.name} are not known: give --method.layer-decay 1")
    whole = {id(p): group.decay for group in standard(encoder, label) for p in group.params}
    stems = {name.rpartition(".")[0] for name in encoder.first_layers}
    kernels = {id(p) for name, p in encoder.named_parameters() if name.rpartition(".")[0] in stems}
    found = []
    for number, layer in enumerate(layers):
        rate = decay ** (len(layers) - 1 - number)
        for decays_ in (True, False):
            for kernel in (True, False):
                params = [p for p in layer if whole.get(id(p)) == decays_ and (id(p) in kernels) == kernel]
                if params:
                    name = f"{label}, layer {number}" + ", kernel" * kernel + ", no decay" * (not decays_)
                    scale = rate * (embedding if kernel else 1.0)
                    found.append(ParamGroup(label=name, params=params, lr_scale=scale, decay=decays_))
    return found
