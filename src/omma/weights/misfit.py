"""What keeps a file's tensors from being those of a network of timm or torchvision, and which they fit."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from omma.core.errors import need
from omma.weights.hub import LibraryWeights
from omma.weights.published.names import DERIVED

COUNTERS = "num_batches_tracked"  # of batch norms; files of old lack them
# where torchvision's networks have their classifiers
BESIDE = ("fc.", "classifier.", "heads.", "head.", "aux1.", "aux2.", "AuxLogits.")
MOST_OF_HEADS = 8  # tensors of classifiers
CANDIDATES = 16  # networks whose shapes are compared with a file's


class Misfit(ValueError):
    """A file's tensors are not those of the network."""


def without_prefix(tensors: Mapping[str, Tensor], expected: Iterable[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors under the prefix (module., model., backbone. ...) with most of the expected names."""
    wanted = set(expected)
    counts: dict[str, int] = {"": 0}
    for name in tensors:
        words = name.split(".")
        for cut in range(min(len(words), 5)):
            if ".".join(words[cut:]) in wanted:
                prefix = "".join(f"{word}." for word in words[:cut])
                counts[prefix] = counts.get(prefix, 0) + 1
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))
    inside = {name.removeprefix(best): x for name, x in tensors.items() if name.startswith(best)}
    return inside, best


def made(name: str) -> bool:
    """Has every network this tensor, whatever the file says?"""
    return name.endswith(COUNTERS) or DERIVED.search(name) is not None


def reasons(weights: LibraryWeights, expected: Mapping[str, Tensor]) -> str:
    """What keeps the tensors from being those of the network, in words; empty if they are."""
    missing = sorted(name for name in expected.keys() - weights.tensors.keys() if not made(name))
    unknown = sorted(n for n in weights.tensors.keys() - expected.keys() if not made(n))
    other = [n for n, x in weights.tensors.items() if n in expected and x.shape != expected[n].shape]
    found: list[str] = []
    if missing:
        found.append(f"it lacks {_few(missing)}")
    if unknown:
        found.append(f"the network has no {_few(unknown)}")
    if other:
        shapes = f"{list(weights.tensors[other[0]].shape)}, not {list(expected[other[0]].shape)}"
        more = f" ({len(other) - 1} more like it)" if len(other) > 1 else ""
        found.append(f"{other[0]} has shape {shapes}{more}")
    return "; ".join(found)


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:2])}" + (f" and {len(names) - 2} others" if len(names) > 2 else "")


def alike(tensors: Mapping[str, Tensor], *near: str, most: int = 3) -> list[str]:
    """Networks with names near to these whose parameters are all in the file, with equal shapes.

    near: names of networks or files. A handful are tried, since making each takes a tenth of a second.
    """
    try:
        import timm
        from torchvision import models
    except ImportError:
        return []
    names: dict[str, Any] = {}
    for each in near:
        word = re.sub("-[0-9a-f]{8}$", "", each).partition(".")[0].replace("-", "_")
        for library, listed in (
            ("timm", timm.list_models()),
            ("torchvision", models.list_models(module=models)),
        ):
            found = difflib.get_close_matches(word, listed, CANDIDATES, cutoff=0.6)
            names |= {f"{library}:{name}": None for name in found}
    fitting: list[str] = []
    for name in names:
        own = _shapes(name)
        inside, _ = without_prefix(tensors, own)
        same = sum(x.shape == own.get(n) for n, x in inside.items() if not made(n))
        if own and same == len(own) and len([n for n in inside if not made(n)]) <= same + MOST_OF_HEADS:
            fitting.append(name)
    return fitting[:most]


def _shapes(name: str) -> dict[str, torch.Size]:
    """Shapes of the named network's tensors, but for the classifier's; empty if it cannot be made."""
    library, _, model = name.partition(":")
    try:
        with torch.device("meta"):
            if library == "timm":
                network = need("timm", "timm").create_model(model, num_classes=0)
            else:
                network = need("torchvision.models", "timm").get_model(model, weights=None)
    except Exception:  # networks of other packages, or that compute with values while they are made
        return {}
    heads = () if library == "timm" else BESIDE
    return {n: x.shape for n, x in network.state_dict().items() if not made(n) and not n.startswith(heads)}
