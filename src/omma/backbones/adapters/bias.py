"""BitFit: only the network's biases are trained [Ben Zaken 2021, arXiv 2106.10199]."""

from dataclasses import dataclass

from omma.core.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def insert(network: Backbone, config: Config) -> None:
    """Give gradients to all biases, those of norms included; ValueError for a network without any."""
    biases = [p for name, p in network.named_parameters() if name.rpartition(".")[2] == "bias"]
    if not biases:
        raise ValueError(f"{network.name} has no biases to train: choose another --adapt")
    for p in biases:
        p.requires_grad_(True)


def merge(network: Backbone) -> None:
    """Nothing to fold in: biases are the network's own."""
