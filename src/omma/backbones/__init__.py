"""Backbones by the names of their papers.

Each file of this folder is a family: `names()` lists its models, `parse(name)` returns the constructor
arguments of a name (None for another family's), and `Encoder` is the class.
"""

import difflib
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, NamedTuple, get_args

import torch

from omma.backbones import adapters
from omma.backbones.layers.wrapped import wrap
from omma.core.protocols import Backbone

__all__ = (
    "adapters",
    "build",
    "family",
    "names",
    "options",
    "outline",
    "paper",
    "traits",
    "unfilled",
    "wrap",
)

PAPERS = {  # arXiv numbers of models whose family's file opens with another paper
    "deit": "2012.12877",
    "dinov2": "2304.07193",
    "eva": "2211.07636",
    "eva02": "2303.11331",
    "dinov3": "2508.10104",
    "linear": "",
    "mlp": "",
    "lenet": "",
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
    """Listed models; a family's `parse` may accept more names (any patch size, any model of timm)."""
    return [name for file in _families() for name in file.names()]


def _find(name: str) -> tuple[type[Backbone], dict[str, Any]]:
    for file in _families():
        arguments = file.parse(name)
        if arguments is not None:
            return file.Encoder, arguments
    close = difflib.get_close_matches(name, names(), n=3) or names()[:5]
    raise ValueError(f"model {name!r} is unknown: did you mean {', '.join(close)}? `omma models` lists all")


def family(name: str) -> type[Backbone]:
    """The class of the model `name`, with the attributes `plain`, `drops_tokens`, ... of the whole family.

    Raises ValueError for an unknown name.
    """
    return _find(name)[0]


def paper(name: str) -> str:
    """The arXiv number of the model's paper, or "".

    Raises ValueError for an unknown name.
    """
    doc = inspect.getdoc(inspect.getmodule(_find(name)[0])) or ""
    first = re.search(r"arXiv (\d{4}\.\d{4,5})", doc)
    return PAPERS.get(re.split("[-/]", name)[0], first[1] if first else "")


def options(name: str) -> dict[str, Any]:
    """A model's options beside image size and channels, with their defaults (`Parameter.empty`: none).

    Raises ValueError for an unknown name.
    """
    encoder, arguments = _find(name)
    parameters = inspect.signature(encoder).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {k: v for k, v in (defaults | arguments).items() if k not in ("image_size", "channels")}


class Traits(NamedTuple):
    """Properties of a model that recipes depend on."""

    patch: int | None  # pixels per feature, along a side; None: the options do not give it
    depth: int | None  # layers
    dim: int | None  # width of the features
    plain: bool  # is each patch embedded separately?
    drops_tokens: bool
    hierarchical: bool  # do stages merge neighbouring tokens, as in Swin?


def traits(name: str) -> Traits:
    """Properties of the model `name`, without building it.

    patch, depth and dim are None for hierarchical models, and for names without a size. Raises ValueError for
    an unknown name.
    """
    encoder = family(name)
    sizes = {k: v for k, v in options(name).items() if v is not inspect.Parameter.empty}
    patch, depth, dim = (None if encoder.hierarchical else sizes.get(k) for k in ("patch", "depth", "dim"))
    return Traits(patch, depth, dim, encoder.plain, encoder.drops_tokens, encoder.hierarchical)


# Minimum of integer options (and of each number, where an option is a tuple).
MINIMA = dict.fromkeys(
    ("image_size", "channels", "depth", "depths", "dim", "heads", "hidden", "patch", "token_patch", "window",
     "class_layers", "rope_home"), 1,
) | {"registers": 0}  # fmt: skip


def _checked(name: str, encoder: type[Backbone], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with floats converted; ValueError for missing ones and for values out of range."""
    parameters = inspect.signature(encoder).parameters
    if missing := [k for k, p in parameters.items() if p.default is p.empty and k not in arguments]:
        raise ValueError(f"{name} has no size of its own: give {', '.join(missing)} too")
    checked = dict(arguments)
    for key, value in arguments.items():
        kinds = {parameters[key].annotation, *get_args(parameters[key].annotation)}
        required = ""
        if key in MINIMA:
            values = value if isinstance(value, tuple | list) and value else (value,)
            if not all(type(v) is int and v >= MINIMA[key] for v in values):
                required = f"whole and at least {MINIMA[key]}"
        elif bool in kinds:
            required = "" if isinstance(value, bool) else "true or false"
        elif float in kinds and not (value is None and NoneType in kinds):
            number = float(value) if isinstance(value, int | float) else math.nan
            checked[key] = number
            if key in ("drop_path", "dropout"):
                required = "" if 0 <= number < 1 else "in [0, 1)"
            elif not (0 <= number < math.inf) or (number == 0 and key != "layer_scale"):
                required = "a number above 0"
        if required:
            raise ValueError(f"{key}={value!r} of {name}: must be {required}")
    return checked


def build(
    *,
    name: str,
    image_size: int,
    channels: int = 3,
    adapt: Mapping[str, Any] | None = None,
    **chosen: Any,
) -> Backbone:
    """A freshly initialised backbone.

    image_size: pixels along a side that positions are made for; they are interpolated for other sizes.
    adapt: an adapter to insert, its kind and options (backbones/adapters). Raises ValueError for an unknown
    name or option.
    """
    encoder, arguments = _find(name)
    defaults = options(name)
    if unknown := sorted(chosen.keys() - defaults.keys()):
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has {', '.join(sorted(defaults))}")
    spec = {"name": name, "image_size": image_size, "channels": channels}
    constructor: Any = encoder  # each family's constructor has options of its own
    network: Backbone = constructor(**_checked(name, encoder, {**spec, **arguments, **chosen}))
    changed = {k: v for k, v in chosen.items() if not k.startswith("drop_") and v != defaults[k]}
    network.built_from = {**spec, **changed}
    if adapt is not None:
        adapters.insert(network, adapt["kind"], {k: v for k, v in adapt.items() if k != "kind"})
    return network


def outline(*, name: str, image_size: int, channels: int = 3, **chosen: Any) -> Backbone:
    """The same on the meta device and frozen, for shapes and cost; no memory is allocated.

    Raises ValueError as `build` does.
    """
    spec = {"name": name, "image_size": image_size, "channels": channels, **chosen}
    try:
        with torch.device("meta"):
            network = build(**spec)
    except RuntimeError:  # the constructor computes with values
        network = build(**spec).to("meta")
    return network.eval().requires_grad_(False)


def unfilled(**spec: Any) -> Backbone:
    """A backbone to load weights into, without initial values where possible (a ViT-B's take seconds).

    Raises ValueError as `build` does.
    """
    try:
        with torch.device("meta"):
            network = build(**spec)
    except RuntimeError:  # the constructor computes with values
        return build(**spec)
    stored = network.state_dict().keys()
    unstored = any(name not in stored for name, _ in network.named_buffers())  # weights would not set these
    return build(**spec) if unstored else network
