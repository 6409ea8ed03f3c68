"""Backbones by the names of their papers.

Each file of this folder is a family: `names()` lists its models, `parse(name)` gives the arguments that a
name stands for (None for another family's), and `Encoder` is the class that they are given to.
"""

import difflib
import importlib
import inspect
import math
import pkgutil
import re
from types import NoneType
from typing import Any, NamedTuple, get_args

import torch

from omma.backbones.layers.wrapped import wrap
from omma.core.protocols import Backbone

__all__ = ("build", "family", "names", "options", "outline", "paper", "traits", "unfilled", "wrap")

PAPERS = {  # arXiv numbers of names whose family's file opens with another's
    "deit": "2012.12877",
    "dinov2": "2304.07193",
    "eva": "2211.07636",
    "eva02": "2303.11331",
    "dinov3": "2508.10104",
    "timm:resnet18": "1512.03385",
    "timm:resnet50": "1512.03385",
    "timm:resnetv2_101x3_bit": "1912.11370",
    "timm:resnetv2_152x4_bit": "1912.11370",
    "timm:vgg16": "1409.1556",
    "timm:convnext_tiny": "2201.03545",
    "torchvision:googlenet": "1409.4842",
    "torchvision:vgg16": "1409.1556",
}


def _families() -> list[Any]:
    files = (m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)
    return [importlib.import_module(f"{__name__}.{name}") for name in files]


def names() -> list[str]:
    """The models that have a name; `parse` of a family may know more (any patch size, any of timm's)."""
    return [name for file in _families() for name in file.names()]


def _find(name: str) -> tuple[type[Backbone], dict[str, Any]]:
    for file in _families():
        arguments = file.parse(name)
        if arguments is not None:
            return file.Encoder, arguments
    close = difflib.get_close_matches(name, names(), n=3) or names()[:5]
    raise ValueError(f"model {name!r} is unknown: did you mean {', '.join(close)}? `omma models` lists all")


def family(name: str) -> type[Backbone]:
    """The class of the model `name`: its attributes `plain`, `drops_tokens`, ... hold for all its members.

    Raises ValueError for an unknown name.
    """
    return _find(name)[0]


def paper(name: str) -> str:
    """The arXiv number of the paper that a name comes from; "" where omma does not know it.

    Raises ValueError for an unknown name.
    """
    opening = inspect.getdoc(inspect.getmodule(_find(name)[0])) or ""
    first = re.search(r"arXiv (\d{4}\.\d{4,5})", opening)
    return PAPERS.get(re.split("[-/]", name)[0], first[1] if first else "")


def options(name: str) -> dict[str, Any]:
    """What can be chosen of a model beside its name, image size and channels, with what it is if nothing is.

    Raises ValueError for an unknown name.
    """
    encoder, arguments = _find(name)
    parameters = inspect.signature(encoder).parameters.values()
    given = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {k: v for k, v in (given | arguments).items() if k not in ("image_size", "channels")}


class Traits(NamedTuple):
    """What recipes ask of a model, so that they need not read its name."""

    patch: int | None  # pixels of input for each feature, along a side; None: the options do not give it
    depth: int | None  # layers
    dim: int | None  # width of the features
    plain: bool  # is each patch embedded by itself?
    drops_tokens: bool
    hierarchical: bool  # do stages merge neighbouring tokens, as in Swin?


def traits(name: str) -> Traits:
    """Properties of the model `name`, without building it.

    Where stages merge tokens, and where a name has no size of its own, patch, depth and dim are None. Raises
    ValueError for an unknown name.
    """
    encoder = family(name)
    known = {k: v for k, v in options(name).items() if v is not inspect.Parameter.empty}
    if encoder.hierarchical:
        known = {}
    return Traits(
        patch=known.get("patch"),
        depth=known.get("depth"),
        dim=known.get("dim"),
        plain=encoder.plain,
        drops_tokens=encoder.drops_tokens,
        hierarchical=encoder.hierarchical,
    )


# The least that options may be; a tuple is of such numbers.
WHOLE = dict.fromkeys(
    ("image_size", "channels", "depth", "depths", "dim", "heads", "hidden", "patch", "token_patch", "window",
     "class_layers", "rope_home"), 1,
) | {"registers": 0}  # fmt: skip


def _checked(name: str, encoder: type[Backbone], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, numbers as the kind that is meant; ValueError for what no network can have."""
    parameters = inspect.signature(encoder).parameters
    if lacking := [k for k, p in parameters.items() if p.default is p.empty and k not in arguments]:
        raise ValueError(f"{name} has no size of its own: give {', '.join(lacking)} too")
    found = dict(arguments)
    for key, value in arguments.items():
        kinds = {parameters[key].annotation, *get_args(parameters[key].annotation)}
        wanted = ""
        if key in WHOLE:
            each = value if isinstance(value, tuple | list) and value else (value,)
            if not all(type(v) is int and v >= WHOLE[key] for v in each):
                wanted = f"whole and at least {WHOLE[key]}"
        elif bool in kinds:
            wanted = "" if isinstance(value, bool) else "true or false"
        elif float in kinds and not (value is None and NoneType in kinds):
            number = float(value) if isinstance(value, int | float) else math.nan
            found[key] = number
            if key == "drop_path":
                wanted = "" if 0 <= number < 1 else "in [0, 1)"
            elif not (0 <= number < math.inf) or (number == 0 and key != "layer_scale"):
                wanted = "a number above 0"
        if wanted:
            raise ValueError(f"{key}={value!r} of {name}: must be {wanted}")
    return found


def build(*, name: str, image_size: int, channels: int = 3, **chosen: Any) -> Backbone:
    """A freshly initialised backbone.

    `image_size`: pixels along a side that positions are made for; other sizes are interpolated.
    Raises ValueError for a name or option that does not exist.
    """
    encoder, arguments = _find(name)
    known = options(name)
    if unknown := sorted(chosen.keys() - known.keys()):
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
    whole = {"name": name, "image_size": image_size, "channels": channels, **arguments, **chosen}
    network: Any = encoder  # each family's constructor has options of its own
    built: Backbone = network(**_checked(name, encoder, whole))
    kept = {k: v for k, v in chosen.items() if not k.startswith("drop_") and v != known[k]}
    built.built_from = {"name": name, "image_size": image_size, "channels": channels, **kept}
    return built


def outline(*, name: str, image_size: int, channels: int = 3, **chosen: Any) -> Backbone:
    """The same without values, on the meta device and frozen, to learn shapes and cost from.

    Nothing is allocated, so that the largest take a second too. Raises ValueError as `build` does.
    """
    with torch.device("meta"):
        network = build(name=name, image_size=image_size, channels=channels, **chosen)
    return network.eval().requires_grad_(False)


def unfilled(**spec: Any) -> Backbone:
    """For weights that fill every parameter: without values where that is possible.

    Drawing those of a ViT-B takes seconds. Raises ValueError as `build` does.
    """
    try:
        with torch.device("meta"):
            network = build(**spec)
    except RuntimeError:  # its constructor computes with values
        return build(**spec)
    stored = network.state_dict().keys()
    loose = any(name not in stored for name, _ in network.named_buffers())  # no file holds these
    return build(**spec) if loose else network
