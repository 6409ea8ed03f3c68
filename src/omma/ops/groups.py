"""Which parameters decay: labelled groups of a network's parameters."""

from torch import nn

from omma.protocols import ParamGroup


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
